"""Experts on the rows of all micro-batches that visit them: gather, multiply, add back.

Shapes: rows m routed to the expert, hidden D, width W. One multiplication per page and block
of ``ROW_BLOCK`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.kernels.reference.linear import linear
from headrace.kernels.reference.moe import expert, gated
from headrace.kernels.routed import Routed
from headrace.kernels.scratch import Scratch
from headrace.kernels.silu import SILU, Silu
from headrace.specs.scratch import ROW_BLOCK, tile_elements

Weights = Mapping[str, Any]
"""Logical name -> Tensor or QuantizedWeight."""


def experts(
    batches: Sequence[Routed],
    first: int,
    weights: Sequence[Weights],
    memory: Tensor,
    activations: str = "f32",
    *,
    silu: Silu = SILU,
) -> None:
    """hidden += gate * expert(x) for experts ``first``, ``first + 1``, ... one after the other.

    ``weights`` as for ``expert``, one mapping per expert; ``memory`` is uint8 scratch of
    ``specs.scratch.scratch_bytes``, ``activations`` as for ``linear``, ``silu`` what lies between
    the products. An expert that no row visits costs nothing.
    """
    for number, w in enumerate(weights, first):
        for block in _row_blocks(_shares(batches, number)):
            _whole(w, block, Scratch(memory), activations, silu)


def expert_up(
    batches: Sequence[Routed],
    number: int,
    weights: Weights,
    inter: Tensor,
    memory: Tensor,
    activations: str = "f32",
    *,
    silu: Silu = SILU,
) -> None:
    """``inter`` [m, w] = silu(gate x) * up x for a block of w rows of gate and up."""
    first = 0
    for block in _row_blocks(_shares(batches, number)):
        scratch = Scratch(memory)
        x = _gather(block, scratch)  # [m, D]
        up = scratch.take(len(x), inter.shape[1])
        tile = scratch.take(tile_elements(*weights["gate"].shape))
        gated(x, weights, inter[first : first + len(x)], up, tile, activations, silu)
        first += len(x)


def expert_down(
    batches: Sequence[Routed],
    number: int,
    inter: Tensor,
    weights: Weights,
    columns: slice,
    memory: Tensor,
    activations: str = "f32",
) -> None:
    """hidden[:, columns] += gate * down(inter) for a block of rows of down; inter [m, W]."""
    first = 0
    for block in _row_blocks(_shares(batches, number)):
        scratch, rows = Scratch(memory), sum(share.size for share in block)
        out = scratch.take(rows, weights["down"].shape[0])
        tile = scratch.take(tile_elements(*weights["down"].shape))
        part = inter[first : first + rows]
        bias = weights.get("down_bias")
        linear(part, weights["down"], out, tile, bias, activations=activations)
        _scatter(out, block, columns)
        first += rows


class _Share(NamedTuple):
    """Rows of one micro-batch that visit an expert: ``rows`` [m] or a slice (dense), their
    ``gates`` [m] or None for 1."""

    batch: Routed
    size: int
    rows: Tensor | slice
    gates: Tensor | None


def _whole(
    weights: Weights, block: list[_Share], scratch: Scratch, activations: str, silu: Silu
) -> None:
    W, D = weights["gate"].shape
    x = _gather(block, scratch)  # [m, D]
    out = scratch.take(*x.shape)
    inter, up = scratch.take(len(x), W), scratch.take(len(x), W)
    tile = scratch.take(max(tile_elements(W, D), tile_elements(D, W)))
    expert(x, weights, out, inter, up, tile, activations=activations, silu=silu)
    _scatter(out, block, slice(None))


def _shares(batches: Sequence[Routed], number: int) -> list[_Share]:
    """Who visits the expert, micro-batch by micro-batch; without empty ones."""
    shares = []
    for batch in batches:
        if batch.routing is None:
            shares.append(_Share(batch, batch.rows, slice(0, batch.rows), None))
        else:
            rows, gates = batch.routing.of(number)
            shares.append(_Share(batch, len(rows), rows, gates))
    return [share for share in shares if share.size]


def _row_blocks(shares: list[_Share]) -> Iterator[list[_Share]]:
    """The rows in order, in blocks of at most ROW_BLOCK."""
    block: list[_Share] = []
    room = ROW_BLOCK
    for share in shares:
        start = 0
        while start < share.size:
            stop = min(share.size, start + room)
            block.append(_part(share, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield block
                block, room = [], ROW_BLOCK
    if block:
        yield block


def _part(share: _Share, start: int, stop: int) -> _Share:
    if (start, stop) == (0, share.size):
        return share
    if isinstance(share.rows, slice):
        return _Share(share.batch, stop - start, slice(start, stop), None)
    gates = None if share.gates is None else share.gates[start:stop]
    return _Share(share.batch, stop - start, share.rows[start:stop], gates)


def _gather(block: list[_Share], scratch: Scratch) -> Tensor:
    """Normed rows of all shares, one under the other: [m, D]."""
    sources = [share.batch.x for share in block if share.batch.x is not None]
    x = scratch.take(sum(share.size for share in block), sources[0].shape[1])
    for source, (share, place) in zip(sources, _places(block), strict=True):
        if isinstance(share.rows, slice):
            x[place].copy_(source[share.rows])
        else:
            torch.index_select(source, 0, share.rows, out=x[place])
    return x


def _scatter(out: Tensor, block: list[_Share], columns: slice) -> None:
    """hidden += gate * out for each share; ``columns`` are those of hidden that ``out`` holds."""
    for share, place in _places(block):
        assert share.batch.hidden is not None
        hidden, part = share.batch.hidden[:, columns], out[place]
        if share.gates is not None:
            part.mul_(share.gates[:, None])
        if isinstance(share.rows, slice):
            hidden[share.rows].add_(part)
        else:
            hidden.index_add_(0, share.rows, part)


def _places(block: list[_Share]) -> Iterator[tuple[_Share, slice]]:
    ends = list(accumulate(share.size for share in block))
    for share, end in zip(block, ends, strict=True):
        yield share, slice(end - share.size, end)
