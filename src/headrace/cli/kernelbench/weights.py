"""Weights of random values in every stored format, in sets that no cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headrace.cli.kernelbench.roofs import cache_bytes
from headrace.kernels.quantized import QuantizedWeight, quantize

FORMATS = ("fp32", "bf16", "fp16", "int8", "int4")
"""Linear formats: int8 with a scale per row, int4 with one per 128 columns."""

FLOATS: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


MET = " x "
"""Between the format of weights and that of the activations they meet, where it was asked for."""


def with_activations(form: str, activations: str | None) -> str:
    """``form`` and what weights in it meet, where ``activations`` are for such weights."""
    meant = ("bf16",) if activations == "bf16" else ("int8", "int4")
    return f"{form}{MET}{activations}" if activations and form in meant else form


def stored(rows: int, columns: int, form: str) -> Any:
    """A weight [rows, columns] in ``form``."""
    form = form.partition(MET)[0]
    weight = torch.randn(rows, columns) * columns**-0.5
    if form == "int8":
        return quantize(weight, 8)
    if form == "int4":
        return quantize(weight, 4, 128 if columns % 128 == 0 else None)
    return weight.to(FLOATS[form])


def bytes_of(weight: Tensor | QuantizedWeight) -> int:
    """Bytes that reading it once takes, scales and zero points included."""
    if isinstance(weight, QuantizedWeight):
        parts = [weight.values, weight.scale, weight.zero_point]
        return sum(p.numel() * p.itemsize for p in parts if p is not None)
    return weight.numel() * weight.itemsize


def copy_of(weight: Any) -> Any:
    """The same values in other memory."""
    if isinstance(weight, QuantizedWeight):
        return replace(weight, values=weight.values.clone(), scale=weight.scale.clone())
    return weight.clone()


def cold_set(weight: Any, least: int | None = None) -> list[Any]:
    """Copies to take in turn, so many that each is out of the caches when its turn comes."""
    total = 4 * cache_bytes() if least is None else least
    return [weight, *(copy_of(weight) for _ in range(total // bytes_of(weight)))]


def flops_roof(form: str) -> str:
    """The roof of products with weights of ``form``."""
    weights, _, met = form.partition(MET)
    if met == "bf16":
        return "bf16_dot"
    return "int8_dot" if weights in ("int8", "int4") and met != "f32" else "fma"
