"""Bodies of experts and of the dense FFN: which rows, weights and buffers a task works on.

A dense FFN is an expert that every row visits with gate 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from torch import Tensor

from headrace.kernels.routed import Routed
from headrace.kernels.select import Kernels
from headrace.machines.machine import Views
from headrace.memory.pages import PageTable
from headrace.models.ahead import Ahead
from headrace.models.sweep import Indexer, Sweep, nothing_to_do
from headrace.models.weights import Weights
from headrace.schedule.task import Buffer, Task
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role

_SCRATCH = Buffer("scratch")
_INTER = Buffer("inter")


class Ffn:
    """Bodies for EXPERT, EXPERT_UP, EXPERT_DOWN (one page) and MOE (all pages of a layer)."""

    def __init__(
        self,
        model: ModelSpec,
        table: PageTable,
        indexer: Indexer,
        kernels: Kernels,
        weights: Weights,
        ahead: Ahead,
    ) -> None:
        self.model = model
        self.indexer = indexer
        self.kernels = kernels
        self.weights = weights
        self.ahead = ahead
        self.pages = {page.id: page for page in table.pages}
        self._lists: dict[int, tuple[Views, list[Any]]] = {}
        self.layers: dict[int, list[Page]] = {}
        for page in table.pages:
            if page.layer is not None and page.expert is not None:
                self.layers.setdefault(page.layer, []).append(page)

    def page(self, task: Task, views: Views, sweep: Sweep) -> None:
        """One page of one expert, unless no row goes to it."""
        assert task.page is not None
        if nothing_to_do(task, sweep):
            return
        memory = next(views[b] for b in task.reads if b.name in ("page", "slot"))
        self._apply(self.pages[task.page], memory, self._batches(views, sweep), views)

    def layer(self, task: Task, views: Views, sweep: Sweep) -> None:
        """All experts of a layer, in ascending order."""
        assert task.layer is not None
        pages, batches = self.layers[task.layer], self._batches(views, sweep)
        if all(page.role is Role.EXPERT for page in pages):
            weights = self._layer_weights(task.layer, pages, views)
            self.kernels.experts(batches, 0, weights, views[_SCRATCH])
        else:
            for page in pages:
                self._apply(page, views[Buffer("page", page.id)], batches, views)
        self.ahead.layer(task.layer + 1)

    def _layer_weights(self, layer: int, pages: list[Page], views: Views) -> Sequence[Any]:
        """The weights of all ``pages``: the same list as long as the views are the same."""
        kept = self._lists.get(layer)
        if kept is None or kept[0] is not views:
            found = [self.weights.of(p.id, views[Buffer("page", p.id)]) for p in pages]
            if kept is not None and all(map(is_, kept[1], found)):
                found = kept[1]
            kept = self._lists[layer] = views, found
        return kept[1]

    def _apply(self, page: Page, memory: Tensor, batches: list[Routed], views: Views) -> None:
        assert page.expert is not None
        weights, scratch = self.weights.of(page.id, memory), views[_SCRATCH]
        columns = slice(page.slices[0].start, page.slices[0].stop)
        if page.role is Role.EXPERT:
            self.kernels.experts(batches, page.expert, [weights], scratch)
        elif page.role is Role.EXPERT_UP:
            inter = views[_INTER][:, columns]
            self.kernels.expert_up(batches, page.expert, weights, inter, scratch)
        else:
            inter = views[_INTER]
            self.kernels.expert_down(batches, page.expert, inter, weights, columns, scratch)

    def _batches(self, views: Views, sweep: Sweep) -> list[Routed]:
        """The rows of every micro-batch that has some."""
        batches = []
        for mb in range(len(sweep.batch.micro_batches)):
            rows = self.indexer.of(sweep, mb).rows
            if rows:
                x, hidden = views.get(Buffer("normed", mb)), views.get(Buffer("hidden", mb))
                routing = views[Buffer("routing", mb)] if self.model.is_moe else None
                batches.append(Routed(rows, x, hidden, routing))
        return batches
