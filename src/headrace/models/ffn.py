"""Bodies of experts (and of the dense FFN): gather rows of all micro-batches, multiply, add back.

Shapes: rows m routed to the expert, hidden D, width W. One multiplication per page and block
of ``ROW_BLOCK`` rows; a dense FFN is an expert that every row visits with gate 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.scratch import Scratch
from headrace.machines.machine import Views
from headrace.memory.pages import PageTable
from headrace.models.sweep import Indexer, Sweep
from headrace.models.weights import Weights
from headrace.schedule.task import Buffer, Task
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.scratch import ROW_BLOCK, tile_elements

_SCRATCH = Buffer("scratch")
_INTER = Buffer("inter")


class Share(NamedTuple):
    """Rows of one micro-batch that visit an expert: ``rows`` [m] or a slice (dense), their
    ``gates`` [m] or None for 1."""

    mb: int
    count: int
    rows: Tensor | slice
    gates: Tensor | None


class Ffn:
    """Bodies for EXPERT, EXPERT_UP, EXPERT_DOWN (one page) and MOE (all pages of a layer)."""

    def __init__(self, model: ModelSpec, table: PageTable, indexer: Indexer) -> None:
        self.model = model
        self.indexer = indexer
        self.weights = Weights(table)
        self.pages = {page.id: page for page in table.pages}
        self.layers: dict[int, list[Page]] = {}
        for page in table.pages:
            if page.layer is not None and page.expert is not None:
                self.layers.setdefault(page.layer, []).append(page)

    def page(self, task: Task, views: Views, sweep: Sweep) -> None:
        """One page of one expert."""
        assert task.page is not None
        memory = next(views[b] for b in task.reads if b.name in ("page", "slot"))
        self._apply(self.pages[task.page], memory, views, sweep)

    def layer(self, task: Task, views: Views, sweep: Sweep) -> None:
        """All experts of a layer, in ascending order."""
        assert task.layer is not None
        for page in self.layers[task.layer]:
            self._apply(page, views[Buffer("page", page.id)], views, sweep)

    def _apply(self, page: Page, memory: Tensor, views: Views, sweep: Sweep) -> None:
        assert page.expert is not None
        shares = self._shares(page.expert, views, sweep)
        if not shares:
            return
        weights = self.weights.of(page.id, memory)
        run = {Role.EXPERT: self._whole, Role.EXPERT_UP: self._up, Role.EXPERT_DOWN: self._down}
        first = 0
        for block in _row_blocks(shares):
            run[page.role](page, weights, block, first, views)
            first += sum(share.count for share in block)

    def _whole(
        self, page: Page, w: Mapping[str, Tensor], block: list[Share], first: int, views: Views
    ) -> None:
        scratch, W, D = Scratch(views[_SCRATCH]), self.model.ffn_width, self.model.hidden
        x = _gather(block, views, scratch)  # [m, D]
        out = scratch.take(*x.shape)
        inter, up = scratch.take(len(x), W), scratch.take(len(x), W)
        tile = scratch.take(max(tile_elements(W, D), tile_elements(D, W)))
        reference.expert(x, w, out, inter, up, tile)
        _scatter(out, block, views, slice(None))

    def _up(
        self, page: Page, w: Mapping[str, Tensor], block: list[Share], first: int, views: Views
    ) -> None:
        scratch, columns = Scratch(views[_SCRATCH]), page.slices[0]
        x = _gather(block, views, scratch)  # [m, D]
        up = scratch.take(len(x), columns.stop - columns.start)
        tile = scratch.take(tile_elements(*w["gate"].shape))
        inter = views[_INTER][first : first + len(x), columns.start : columns.stop]
        reference.gated(x, w, inter, up, tile)

    def _down(
        self, page: Page, w: Mapping[str, Tensor], block: list[Share], first: int, views: Views
    ) -> None:
        scratch, columns = Scratch(views[_SCRATCH]), page.slices[0]
        rows = sum(share.count for share in block)
        out = scratch.take(rows, columns.stop - columns.start)
        tile = scratch.take(tile_elements(*w["down"].shape))
        inter = views[_INTER][first : first + rows]  # [m, W]
        reference.linear(inter, w["down"], out, tile, w.get("down_bias"))
        _scatter(out, block, views, slice(columns.start, columns.stop))

    def _shares(self, expert: int, views: Views, sweep: Sweep) -> list[Share]:
        """Who visits ``expert``, micro-batch by micro-batch; without empty ones."""
        shares = []
        for mb in range(len(sweep.batch.micro_batches)):
            if self.model.is_moe:
                rows, gates = views[Buffer("routing", mb)].of(expert)
                shares.append(Share(mb, len(rows), rows, gates))
            else:
                count = self.indexer.of(sweep, mb).rows
                shares.append(Share(mb, count, slice(0, count), None))
        return [share for share in shares if share.count]


def _row_blocks(shares: list[Share]) -> Iterator[list[Share]]:
    """The rows in order, in blocks of at most ROW_BLOCK."""
    block: list[Share] = []
    room = ROW_BLOCK
    for share in shares:
        start = 0
        while start < share.count:
            stop = min(share.count, start + room)
            block.append(_part(share, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield block
                block, room = [], ROW_BLOCK
    if block:
        yield block


def _part(share: Share, start: int, stop: int) -> Share:
    if (start, stop) == (0, share.count):
        return share
    if isinstance(share.rows, slice):
        return Share(share.mb, stop - start, slice(start, stop), None)
    gates = None if share.gates is None else share.gates[start:stop]
    return Share(share.mb, stop - start, share.rows[start:stop], gates)


def _gather(block: list[Share], views: Views, scratch: Scratch) -> Tensor:
    """Normed rows of all shares, one under the other: [m, D]."""
    first = views[Buffer("normed", block[0].mb)]
    x = scratch.take(sum(share.count for share in block), first.shape[1])
    for share, place in _places(block):
        normed = views[Buffer("normed", share.mb)]
        if isinstance(share.rows, slice):
            x[place].copy_(normed[share.rows])
        else:
            torch.index_select(normed, 0, share.rows, out=x[place])
    return x


def _scatter(out: Tensor, block: list[Share], views: Views, columns: slice) -> None:
    """hidden += gate * out for each share; ``columns`` are those of hidden that ``out`` holds."""
    for share, place in _places(block):
        hidden, part = views[Buffer("hidden", share.mb)][:, columns], out[place]
        if share.gates is not None:
            part.mul_(share.gates[:, None])
        if isinstance(share.rows, slice):
            hidden[share.rows].add_(part)
        else:
            hidden.index_add_(0, share.rows, part)


def _places(block: list[Share]) -> Iterator[tuple[Share, slice]]:
    ends = list(accumulate(share.count for share in block))
    for share, end in zip(block, ends, strict=True):
        yield share, slice(end - share.count, end)
