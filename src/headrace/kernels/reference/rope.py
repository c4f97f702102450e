"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves rotated against each other
as Hugging Face checkpoints expect, and the frequency scalings of config.json."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UnsupportedModelError
from headrace.specs.model import Rope


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, temp: Tensor) -> Tensor:
    """Rotate ``x`` [rows, heads, d] in place; cos and sin [rows, d/2]; temp as large as ``x``."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [rows, 1, d/2]
    a, b = temp.view(2, *low.shape).unbind(0)
    torch.mul(low, sin, out=a)
    torch.mul(high, sin, out=b)
    low.mul_(cos).sub_(b)
    high.mul_(cos).add_(a)
    return x


def rope_tables(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, d/2] at integer ``positions`` [rows]."""
    angles = positions[:, None].float() * frequencies
    return angles.cos().mul_(scale), angles.sin().mul_(scale)


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies [d/2] fp32 and the factor on cos and sin.

    Raises UnsupportedModelError for a scaling type that is not run.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    scaling: dict[str, Any] = dict(rope.scaling)
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, rope.theta, head_dim, scaling)
    raise UnsupportedModelError("rope scaling", expected="linear, llama3 or yarn", got=kind)


def _llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, a ramp in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    stretched = torch.where(wavelength > context / low, plain / scaling["factor"], plain)
    ramp = (context / wavelength - low) / (high - low)
    smooth = (1 - ramp) * stretched / scaling["factor"] + ramp * stretched
    medium = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(medium, smooth, stretched)


def _yarn(
    plain: Tensor, theta: float, head_dim: int, scaling: dict[str, Any]
) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): interpolate slow dimensions only."""
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        turns = context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    steps = torch.arange(head_dim // 2, dtype=torch.float32)
    keep = 1 - ((steps - low) / width).clamp_(0, 1)
    return plain / factor * (1 - keep) + plain * keep, _yarn_attention(factor, scaling)


def _yarn_attention(factor: float, scaling: dict[str, Any]) -> float:
    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
