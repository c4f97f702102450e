"""Does the upcycled model speak, and does it matter which expert a row goes to?

``python -m demo.measure .demo/model`` prints the figures that the conformance test asserts. The
arithmetic is transformers' in fp32, so that nothing of Headrace's own is part of the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

import headrace
from demo.gguf_source import GgufSource, bundled_gguf

PASSAGE = Path(headrace.__file__).parent / "cli" / "passage.txt"
PROMPTS = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True)
class Changes:
    """Parts of positions (0 to 1) whose token differs once the model is altered."""

    free_running: float
    teacher_forced: float


@dataclass(frozen=True)
class Figures:
    """What is measured. ``busiest``: the largest part of rows that one expert of a layer gets,
    over the passage and the answers together; the same for each of them alone."""

    dense_perplexity: float
    perplexity: float
    busiest: float
    busiest_passage: float
    busiest_answers: float
    mean_first_gate: float
    swapped: Changes
    top_1: Changes
    answers: tuple[str, ...]


def measure(folder: Path, gguf: Path, prompts: int = 12, tokens: int = 64) -> Figures:
    """Measure the model in ``folder`` against the dense one in ``gguf``; minutes on two cores."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    passage = torch.tensor([tokenizer.encode(PASSAGE.read_text())])
    dense = perplexity(dense_model(gguf), passage)
    model = MixtralForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    asked = [
        encode(tokenizer, messages) for messages in chat_prompts()[:: 132 // prompts][:prompts]
    ]
    with routed(model) as read:
        upcycled = perplexity(model, passage)
    answers = answer(model, asked, tokens)
    with routed(model) as spoken:
        for ids, told in zip(asked, answers, strict=True):
            logits(model, ids + told)
    everything = [a + b for a, b in zip(read, spoken, strict=True)]
    experts = model.config.num_local_experts
    busiest, gate = summarise(everything, experts)
    told_base = [forced(model, a, b) for a, b in zip(asked, answers, strict=True)]

    def changes() -> Changes:
        free = answer(model, asked, tokens)
        told = [forced(model, a, b) for a, b in zip(asked, answers, strict=True)]
        return Changes(different(answers, free), different(told_base, told))

    with swapped_experts(model):
        swapped = changes()
    with one_expert(model):
        top_1 = changes()
    return Figures(
        dense,
        upcycled,
        busiest,
        summarise(read, experts)[0],
        summarise(spoken, experts)[0],
        gate,
        swapped,
        top_1,
        tuple(tokenizer.decode(ids) for ids in answers),
    )


def dense_model(gguf: Path) -> LlamaForCausalLM:
    """The model that was upcycled, fp32."""
    source = GgufSource(gguf)
    shape = source.settings
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        rms_norm_eps=shape.norm_eps,
        max_position_embeddings=shape.context,
        rope_theta=shape.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
    )
    weights = {
        "model.embed_tokens.weight": source.weight("token_embd"),
        "model.norm.weight": source.weight("output_norm"),
    }
    for index in range(shape.layers):
        layer, at = source.layer(index), f"model.layers.{index}."
        weights[at + "input_layernorm.weight"] = layer.attn_norm
        weights[at + "post_attention_layernorm.weight"] = layer.ffn_norm
        for name in "qkvo":
            weights[f"{at}self_attn.{name}_proj.weight"] = getattr(layer, name)
        for name in ("gate", "up", "down"):
            weights[f"{at}mlp.{name}_proj.weight"] = getattr(layer, name)
    model = LlamaForCausalLM(config)
    tensors = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or missing != ["lm_head.weight"]:
        raise SystemExit(f"dense model: missing {missing}, unexpected {unexpected}")
    return model.eval()


def perplexity(model: Any, ids: torch.Tensor) -> float:
    """exp(mean negative log likelihood) of ``ids`` [1, T]."""
    with torch.inference_mode():
        return float(torch.exp(model(ids, labels=ids).loss))


def chat_prompts() -> list[list[dict[str, str]]]:
    """The messages of every bundled prompt."""
    lines = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    return [line.get("body", line)["messages"] for line in lines]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation that waits for its answer."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def answer(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy continuations, each to its end or to ``tokens``; one batch, padded on the left."""
    end, width = model.config.eos_token_id, max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=end
        )
    told = [row.tolist() for row in out[:, width:]]
    return [row[: row.index(end) + 1] if end in row else row for row in told]


def forced(model: Any, ids: list[int], told: list[int]) -> list[int]:
    """The likeliest token at each position of ``told``, given what really came before."""
    return logits(model, ids + told)[len(ids) - 1 : -1].argmax(-1).tolist()


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[T, V]."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def different(base: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    """Part of positions that differ; where one has ended and the other has not, they differ."""
    count = wrong = 0
    for a, b in zip(base, other, strict=True):
        count += max(len(a), len(b))
        wrong += max(len(a), len(b)) - sum(x == y for x, y in zip(a, b, strict=False))
    return wrong / count


@contextmanager
def routed(model: Any) -> Iterator[list[list[tuple[torch.Tensor, torch.Tensor]]]]:
    """Per layer, the (expert ids, gates) [T, k] of everything run inside."""
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in model.model.layers]
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda _module, _inputs, output, into=into: into.append((output[2], output[1]))
        )
        for layer, into in zip(model.model.layers, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def summarise(
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]], experts: int
) -> tuple[float, float]:
    """The largest share of rows of any expert in any layer; the mean of the larger gate."""
    shares, gates = [], []
    for layer in seen:
        ids = torch.cat([i for i, _ in layer])
        shares.append(ids.flatten().bincount(minlength=experts).max().item() / len(ids))
        gates.append(torch.cat([g for _, g in layer]).max(-1).values.mean().item())
    return max(shares), sum(gates) / len(gates)


@contextmanager
def swapped_experts(model: Any) -> Iterator[None]:
    """Experts 0 and 1 exchanged in every layer; the routers stay."""

    def swap() -> None:
        with torch.no_grad():
            for layer in model.model.layers:
                for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                    weight[[0, 1]] = weight[[1, 0]]

    swap()
    try:
        yield
    finally:
        swap()


@contextmanager
def one_expert(model: Any) -> Iterator[None]:
    """Each row goes to its best expert only."""
    routers = [layer.mlp.gate for layer in model.model.layers]
    before = routers[0].top_k
    for router in routers:
        router.top_k = 1
    try:
        yield
    finally:
        for router in routers:
            router.top_k = before


if __name__ == "__main__":
    figures = asdict(measure(Path(sys.argv[1]), bundled_gguf()))
    print(json.dumps(figures, indent=2, ensure_ascii=False))
