"""``x W^T`` with W in its stored type, upcast tile by tile so that tiles stay in the cache.

Shapes: x [rows, K] fp32, weight [N, K], out [rows, N] fp32 (columns may be a slice of a wider
matrix). Tiles are row blocks of W: the reduction along K is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight
from headrace.specs.scratch import tile_rows


def linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    out: Tensor,
    tile: Tensor,
    bias: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """``out = x W^T + bias``, or ``out += ...`` when ``accumulate``.

    ``tile`` is fp32 scratch of at least ``specs.scratch.tile_elements(N, K)`` elements; fp32
    weights are used where they are. Costs 2 rows N K FLOPs and one pass over W.
    """
    for start, stop, block in upcast(weight, tile):
        part = out[:, start:stop]
        if accumulate:
            torch.addmm(part, x, block.t(), out=part)
        else:
            torch.mm(x, block.t(), out=part)
    if bias is not None:
        out.add_(bias)
    return out


def upcast(weight: Tensor | QuantizedWeight, tile: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Row blocks ``(start, stop, fp32 block)`` of ``weight``; a block is valid until the next.

    A quantized weight is widened whole, in memory of its own: a definition, not a way to run.
    """
    rows, columns = weight.shape
    if isinstance(weight, QuantizedWeight):
        yield 0, rows, weight.dequantized()
        return
    if weight.dtype == torch.float32:
        yield 0, rows, weight
        return
    step = tile_rows(columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        block = tile[: (stop - start) * columns].view(stop - start, columns)
        yield start, stop, block.copy_(weight[start:stop])
