"""``x W^T`` with W in its stored type, upcast tile by tile so that tiles stay in the cache.

Shapes: x [rows, K] fp32, weight [N, K], out [rows, N] fp32 (columns may be a slice of a wider
matrix). Tiles are row blocks of W: the reduction along K is never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight, rounded
from headrace.specs.scratch import integer_elements, tile_rows


def linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    out: Tensor,
    tile: Tensor,
    bias: Tensor | None = None,
    accumulate: bool = False,
    activations: str = "f32",
) -> Tensor:
    """``out = x W^T + bias``, or ``out += ...`` when ``accumulate``.

    ``tile`` is fp32 scratch of at least ``specs.scratch.tile_elements(N, K)`` elements; fp32
    weights are used where they are. Costs 2 rows N K FLOPs and one pass over W. Where W is
    integers, x is rounded as ``kernels.quantized.rounded`` says unless ``activations`` is
    ``f32``; where W is bf16 and ``activations`` is ``bf16``, to the nearest bf16, ties to even.
    """
    for start, stop, block in upcast(weight, tile):
        for rows, values in _met(x, weight, activations):
            part = out[rows, start:stop]
            if accumulate:
                torch.addmm(part, values, block.t(), out=part)
            else:
                torch.mm(values, block.t(), out=part)
    if bias is not None:
        out.add_(bias)
    return out


def fetch(weight: Tensor | QuantizedWeight) -> None:
    """``weight`` is what the next call reads: a hint, for kernels that have threads to ask for it
    meanwhile. No result depends on it; here it does nothing."""


def turn(weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
    """``weight`` in the layout that these kernels multiply fastest, in its own memory; what comes
    back replaces it. Results keep their bits. Here that is how it was stored."""
    return weight


def upcast(weight: Tensor | QuantizedWeight, tile: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Row blocks ``(start, stop, fp32 block)`` of ``weight``; a block is valid until the next.

    A quantized weight is widened in memory beside the tile (``specs.scratch.integer_bytes``).
    """
    rows, columns = weight.shape
    if isinstance(weight, QuantizedWeight):
        step = integer_elements(columns) // columns // 8 * 8  # packed zero points share words
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield start, stop, weight[start:stop].dequantized()
        return
    if weight.dtype == torch.float32:
        yield 0, rows, weight
        return
    step = tile_rows(columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        block = tile[: (stop - start) * columns].view(stop - start, columns)
        yield start, stop, block.copy_(weight[start:stop])


def _met(
    x: Tensor, weight: Tensor | QuantizedWeight, activations: str
) -> Iterator[tuple[slice, Tensor]]:
    """Row blocks of x as the weights meet them, rounded in memory of their own
    (``specs.scratch.integer_bytes``)."""
    kept: Callable[[Tensor], Tensor] | None = None
    if isinstance(weight, QuantizedWeight):
        kept = None if activations == "f32" else partial(rounded, group=weight.group)
    elif weight.dtype == torch.bfloat16 and activations == "bf16":
        kept = _as_bf16
    if kept is None:
        yield slice(None), x
        return
    step = integer_elements(x.shape[1]) // max(1, x.shape[1])
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        yield rows, kept(x[rows])


def _as_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()
