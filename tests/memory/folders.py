"""Small checkpoints for tests, written by hand so that every odd layout can be had."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from headrace.specs.model import ITEM_BYTES, ModelSpec


def small_model(**changes: object) -> ModelSpec:
    """Two layers, two experts, nothing a power of two."""
    sizes = {"layers": 2, "hidden": 24, "heads": 2, "kv_heads": 1, "head_dim": 12}
    sizes |= {"ffn_width": 40, "vocab": 96}
    return ModelSpec("mixtral", **(sizes | {"experts": 2, "top_k": 1} | changes))  # type: ignore[arg-type]


def tensor_name(logical: str, layer: int | None, expert: int | None) -> str:
    """A naming as good as any."""
    parts = [None if layer is None else f"L{layer}", None if expert is None else f"E{expert}"]
    return ".".join([p for p in parts if p] + [logical])


def model_tensors(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of all tensors of ``model``."""
    shapes = {tensor_name(n, None, None): s for n, s in model.global_tensors().items()}
    for layer in range(model.layers):
        shapes |= {tensor_name(n, layer, None): s for n, s in model.layer_tensors().items()}
        for expert in range(model.experts):
            named = model.expert_tensors().items()
            shapes |= {tensor_name(n, layer, expert): s for n, s in named}
    return shapes


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], header_pad: int = 0
) -> bytes:
    """One file; ``header_pad`` spaces after the header shift all data by as many bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": offsets}
        data += content
    return framed(json.dumps(header).encode() + b" " * header_pad, data)


def framed(header: bytes, data: bytes = b"") -> bytes:
    """A header with its length before it."""
    return len(header).to_bytes(8, "little") + header + data


def write_folder(
    folder: Path,
    model: ModelSpec,
    shards: int = 1,
    header_pad: int = 0,
    seed: int = 0,
    dtypes: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """A checkpoint of ``model``: random bytes, shuffled order, dealt over ``shards`` files."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "mixtral"}))
    names = list(model_tensors(model).items())
    draw.shuffle(names)
    tensors = {}
    for name, shape in names:
        dtype = (dtypes or {}).get(name, model.weight_dtype)
        count = shape[0] * (shape[1] if len(shape) > 1 else 1) * ITEM_BYTES[dtype]
        tensors[name] = (dtype, shape, draw.randbytes(count))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, header_pad))
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        share = {n: t for i, (n, t) in enumerate(tensors.items()) if i % shards == shard}
        (folder / file).write_bytes(safetensors_bytes(share, header_pad))
        weight_map |= dict.fromkeys(share, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every tensor's bytes according to the safetensors library."""
    import safetensors

    found = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in safetensors.deserialize(file.read_bytes()):
            found[name] = bytes(tensor["data"])
    return found
