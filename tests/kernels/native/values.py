"""Operands of kernel tests, and the paths that this processor has for single rows."""

from __future__ import annotations

import torch

from headrace.kernels import native
from headrace.kernels.native import rows


def made(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, the same for the same ``seed``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def unaligned(values: torch.Tensor) -> torch.Tensor:
    """The same values, one element off whatever alignment they had."""
    memory = torch.empty(values.numel() + 1, dtype=values.dtype)[1:]
    return memory.view(values.shape).copy_(values)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two fp32 tensors are equal bit for bit."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def _usable(path: str) -> bool:
    try:
        return native.available() and native.native_module().rows_path(path) == path
    except ValueError:
        return False


PATHS = [path for path in rows.ROW_PATHS if _usable(path)]
