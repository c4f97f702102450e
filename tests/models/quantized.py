"""Quantized tiny checkpoints, and the same weights as floats for transformers.

What is stored is decoded here once more, with NumPy and bit by bit, so that the layout is told
from its description and not from the code under test.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.engine.quantizing import Quantized, Quantizing
from headrace.engine.recipe import Recipe
from tests.models.tiny import build

SIZES = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 16}
"""Rows that groups of 32 divide."""


def quantized(
    case: str, folder: Path, recipe: Recipe, dtype: torch.dtype = torch.float32, **larger: int
) -> Path:
    """A checkpoint of ``case`` in ``folder/source``, quantized into ``folder/made``."""
    build(case, folder / "source", dtype, **(SIZES | larger))
    quantize_folder(folder / "source", folder / "made", recipe)
    return folder / "made"


def quantize_folder(source: Path, made: Path, recipe: Recipe, **settings: Any) -> Quantized:
    return Quantizing(source, made, recipe, **settings).run(time.perf_counter)


def widened(folder: Path, into: Path) -> Path:
    """The checkpoint in ``folder`` with its integers as fp32."""
    into.mkdir()
    config = json.loads((folder / "config.json").read_text())
    groups = config.pop("quantization_config")["config_groups"]
    (into / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    bits = groups["group_0"]["weights"]["num_bits"]
    save_file(decoded(tensors_of(folder), bits), into / "model.safetensors", {"format": "pt"})
    for path in folder.glob("generation_config.json"):
        shutil.copy(path, into)
    return into


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor, as the safetensors library reads it."""
    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def decoded(tensors: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Integers and scales to fp32, floats as they are."""
    found = {}
    for name, scale in tensors.items():
        stem, is_scale, _ = name.partition("weight_scale")
        if is_scale:
            packed, zeros = (tensors.get(stem + n) for n in ("weight_packed", "weight_zero_point"))
            if packed is None:
                integers, zero = tensors[f"{stem}weight"].float(), zeros
            else:
                rows, columns = tensors[f"{stem}weight_shape"].tolist()
                integers = _unpack(packed, bits, columns)
                zero = None if zeros is None else _unpack(zeros.T, bits, rows).T
            shift = 0 if zero is None else zero.float()[..., None]
            grouped = integers.view(*scale.shape, -1) - shift
            found[f"{stem}weight"] = (grouped * scale.float()[..., None]).view(integers.shape)
        elif name.endswith(("weight", "bias")) and f"{name}_scale" not in tensors:
            found[name] = tensors[name].float()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _unpack(words: Tensor, bits: int, count: int) -> Tensor:
    raw = np.ascontiguousarray(words.numpy()).view(np.uint8)
    flags = np.unpackbits(raw, axis=1, bitorder="little")
    fields = flags.reshape(len(raw), -1, bits) @ (1 << np.arange(bits))
    return torch.from_numpy(fields[:, :count] - 2 ** (bits - 1)).float()
