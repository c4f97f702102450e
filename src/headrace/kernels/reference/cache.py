"""Writing keys and values to their places in the cache, in its format."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.kv import KvCache

_SMALLEST = 1e-36  # a row whose largest magnitude is not above it is stored as zeros


def append(k: Tensor, v: Tensor | None, kv: KvCache, slots: Tensor, temp: Tensor) -> None:
    """Write the first r rows of k and v [.., KV d] fp32 to places ``slots`` (int64 [r], in
    tokens) of the cache.

    Rounded to nearest, ties to even. int8: per token and head, the scale is the largest
    magnitude / 127, and NaN when a value is not finite. ``temp`` fp32 [r KV d] is overwritten.
    """
    halves = (k,) if v is None else (k, v)
    for half, new in enumerate(rows[: len(slots)] for rows in halves):
        values = kv.half(half).transpose(1, 2)  # [blocks, block, KV, d]
        split = new.view(new.shape[0], *values.shape[2:])
        places = (slots // values.shape[1], slots % values.shape[1])
        if kv.scales is None:
            values[places] = _rounded(split, values.dtype, temp)
        else:
            scales = kv.scales[half].transpose(1, 2)  # [blocks, block, KV]
            _append_integers(split, values, scales, places, temp[: split.numel()])


def _append_integers(
    new: Tensor, values: Tensor, scales: Tensor, places: tuple[Tensor, Tensor], temp: Tensor
) -> None:
    top = torch.linalg.vector_norm(new, torch.inf, -1)  # [r, KV], NaN passes
    usable = top > _SMALLEST
    scaled = torch.mul(new, torch.where(usable, 127.0 / top, 0.0)[..., None], out=temp.view_as(new))
    values[places] = scaled.round_().nan_to_num_(0).to(torch.int8)
    scale = torch.where(usable, top / 127.0, 0.0)
    scales[places] = scale.masked_fill_(~top.isfinite(), torch.nan)


def _rounded(new: Tensor, dtype: torch.dtype, temp: Tensor) -> Tensor:
    """``new`` in the cache's type, written over ``temp``."""
    if new.dtype == dtype:
        return new
    return temp.view(dtype)[: new.numel()].view(new.shape).copy_(new)
