"""Make a checkpoint of random weights: any supported shape, written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.random_weights import RandomWeights
from headrace.cli.toy_tokenizer import write_tokenizer
from headrace.errors import StorageError, UnsupportedModelError, UsageError
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

ARCHITECTURES = ("mixtral", "olmoe", "llama", "mistral")

SMALL: dict[str, dict[str, int]] = {
    "mixtral": {"experts": 8, "top_k": 2},
    "olmoe": {"experts": 16, "top_k": 4},
    "llama": {"experts": 1, "top_k": 1},
    "mistral": {"experts": 1, "top_k": 1},
}
"""What differs between the default shapes, beside SHAPE."""

SHAPE = {"layers": 4, "hidden": 256, "heads": 8, "ffn_width": 512, "vocab": 512}


def shape_spec(
    architecture: str, like: str | None, dtype: str, sizes: Mapping[str, int | None]
) -> ModelSpec:
    """The shape asked for: that of registry model ``like``, or a small one of ``architecture``,
    with the ``sizes`` (fields of ModelSpec) that are not None in their place. Raises UsageError.
    """
    if dtype not in ITEM_BYTES:
        raise UsageError("--dtype", expected=" | ".join(ITEM_BYTES), got=dtype)
    given: dict[str, Any] = {k: v for k, v in sizes.items() if v is not None}
    try:
        if like is not None:
            from headrace.specs.registry import known_model

            return check_shape(replace(known_model(like).spec, weight_dtype=dtype, **given))
        return check_shape(small_spec(architecture, dtype, given))
    except UnsupportedModelError as error:
        raise UsageError(error.message, expected=error.expected, got=error.got) from error


def small_spec(architecture: str, dtype: str, given: Mapping[str, int]) -> ModelSpec:
    """A ModelSpec of ``architecture`` with small defaults. Raises UsageError."""
    if architecture not in ARCHITECTURES:
        raise UsageError("--arch", expected=" | ".join(ARCHITECTURES), got=architecture)
    values: dict[str, Any] = {**SHAPE, **SMALL[architecture], **given}
    olmoe, heads = architecture == "olmoe", values["heads"]
    values.setdefault("head_dim", values["hidden"] // heads)
    values.setdefault("kv_heads", heads if olmoe or heads % 4 else heads // 4)
    return ModelSpec(
        architecture=architecture,
        weight_dtype=dtype,
        qk_norm=olmoe,
        renormalise=not olmoe,
        **values,
    )


def check_shape(spec: ModelSpec) -> ModelSpec:
    """Refuse shapes that the architecture's own config.json cannot express."""
    if not spec.is_moe and spec.architecture in ("mixtral", "olmoe"):
        raise UsageError("--experts", expected="at least 2", got=spec.experts)
    if spec.is_moe and spec.architecture in ("llama", "mistral"):
        raise UsageError("--experts", expected="1: the architecture is dense", got=spec.experts)
    if spec.architecture == "olmoe" and spec.head_dim * spec.heads != spec.hidden:
        raise UsageError("--head-dim", expected=f"{spec.hidden // spec.heads}", got=spec.head_dim)
    if spec.head_dim % 2:
        raise UsageError("--head-dim", expected="an even number", got=spec.head_dim)
    if spec.vocab < 4:
        raise UsageError("--vocab", expected="at least 4", got=spec.vocab)
    return spec


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of a model, as transformers writes it. Raises UnsupportedModelError."""
    if spec.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            "cannot make checkpoints of this architecture",
            expected=", ".join(ARCHITECTURES),
            got=spec.architecture,
        )
    family = {"mixtral": "Mixtral", "olmoe": "Olmoe", "llama": "Llama", "mistral": "Mistral"}
    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
    return {
        "architectures": [f"{family[spec.architecture]}ForCausalLM"],
        "model_type": spec.architecture,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "torch_dtype": names[spec.weight_dtype],
        **_own_keys(spec),
    }


def make_checkpoint(
    spec: ModelSpec,
    folder: Path,
    *,
    seed: int = 0,
    shard_bytes: int = 2_000_000_000,
    written: Callable[[int], object] = lambda nbytes: None,
) -> int:
    """Write weights, config and tokenizer into a new ``folder``; returns bytes of weights.

    Memory stays at a few tens of MB. ``written`` hears of each piece as it is on its way. What
    is cut short leaves an empty folder. Raises UsageError when the folder has files in it,
    StorageError when the disk is too full.
    """
    config = config_of(spec)
    sizes = spec.parameters() * ITEM_BYTES[spec.weight_dtype]
    try:
        _claim(folder, sizes)
    except OSError as error:
        raise StorageError(f"cannot make {folder}", got=error.strerror) from error
    try:
        _write_json(folder / "config.json", config)
        generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
        _write_json(folder / "generation_config.json", generation)
        write_tokenizer(folder, spec.vocab, spec.max_positions)
        _write_weights(spec, config, folder, seed, shard_bytes, written)
    except BaseException as error:
        for path in folder.iterdir():  # all ours: the folder was empty
            path.unlink()
        if isinstance(error, OSError):
            raise StorageError(f"writing to {folder} failed", got=error.strerror) from error
        raise
    return sizes


def made_with_progress(
    spec: ModelSpec, folder: Path, seed: int, shard_bytes: int, console: Console
) -> int:
    """``make_checkpoint`` with a bar of bytes on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=spec.parameters() * ITEM_BYTES[spec.weight_dtype])
        return make_checkpoint(
            spec,
            folder,
            seed=seed,
            shard_bytes=shard_bytes,
            written=lambda nbytes: bar.update(task, advance=nbytes),
        )


def tensors_of(spec: ModelSpec) -> Iterator[tuple[str, int | None, int | None, tuple[int, ...]]]:
    """(logical name, layer, expert, shape) of every tensor, in order of use."""
    rest = spec.global_tensors()
    yield "embed", None, None, rest["embed"]
    for layer in range(spec.layers):
        for name, shape in spec.layer_tensors().items():
            yield name, layer, None, shape
        for expert in range(spec.experts):
            for name, shape in spec.expert_tensors().items():
                yield name, layer, expert, shape
    yield "final_norm", None, None, rest["final_norm"]
    if "head" in rest:
        yield "head", None, None, rest["head"]


def _write_weights(
    spec: ModelSpec,
    config: dict[str, Any],
    folder: Path,
    seed: int,
    shard_bytes: int,
    written: Callable[[int], object],
) -> None:
    from headrace.memory.write_checkpoint import CheckpointWriter
    from headrace.models.load import architecture

    names = architecture(config)
    weights = RandomWeights(spec.weight_dtype, seed)
    with CheckpointWriter(folder, shard_bytes) as writer:
        for logical, layer, expert, shape in tensors_of(spec):
            name = names.tensor_name(logical, layer, expert)
            chunks = _counted(weights.chunks(name, shape), written)
            writer.add(name, spec.weight_dtype, shape, chunks)


def _counted(chunks: Iterator[Any], written: Callable[[int], object]) -> Iterator[memoryview]:
    for chunk in chunks:
        data = memoryview(chunk).cast("B")
        yield data
        written(data.nbytes)


def _own_keys(spec: ModelSpec) -> dict[str, Any]:
    """The keys of config.json that only this architecture has."""
    if spec.architecture == "mixtral":
        return {
            "head_dim": spec.head_dim,
            "num_local_experts": spec.experts,
            "num_experts_per_tok": spec.top_k,
            "sliding_window": spec.sliding_window,
            "output_router_logits": False,
        }
    if spec.architecture == "olmoe":
        return {
            "num_experts": spec.experts,
            "num_experts_per_tok": spec.top_k,
            "norm_topk_prob": spec.renormalise,
            "clip_qkv": spec.clip_qkv,
            "attention_bias": spec.qkv_bias,
        }
    if spec.architecture == "mistral":
        return {"head_dim": spec.head_dim, "sliding_window": spec.sliding_window}
    biases = {"attention_bias": spec.qkv_bias, "mlp_bias": spec.mlp_bias}
    return {"head_dim": spec.head_dim, **biases}


def _claim(folder: Path, needed: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder is not empty", got=str(folder), hint="name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01:
        folder.rmdir()
        raise StorageError(
            "too little space for the checkpoint",
            expected=format_bytes(needed),
            got=f"{format_bytes(free)} free in {folder.parent}",
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
