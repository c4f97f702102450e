"""Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """``out = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    ``x`` and ``out`` are [rows, D] fp32 and must not be the same memory; ``weight`` is [D] in
    its stored type. torch allocates [rows, 1] and one fp32 copy of ``weight``.
    """
    torch.mul(x, x, out=out)
    scale = out.mean(-1, keepdim=True).add_(eps).rsqrt_()  # [rows, 1]
    return torch.mul(x, scale, out=out).mul_(weight)
