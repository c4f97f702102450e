"""What the layers of a model put out for some tokens of a text, to be compared with another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from headrace.machines.machine import Body, Views
from headrace.models.sweep import Sweep
from headrace.schedule.task import Buffer, Op, Task

KEPT_TOKENS = 64
"""Tokens whose rows are kept, at most: 4 bytes x hidden x layers each."""


@dataclass
class LayerOutputs:
    """Hidden rows after each of ``layers`` layers, of every token of a text at a multiple of
    ``step``. What is scored now begins ``offset`` tokens into it."""

    layers: int
    step: int
    offset: int = 0
    rows: dict[int, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: int, tokens: int) -> LayerOutputs:
        """For a text of ``tokens``, KEPT_TOKENS of it."""
        return cls(layers, max(1, -(-tokens // KEPT_TOKENS)))

    def watch(self, bodies: Mapping[Op, Body]) -> dict[Op, Body]:
        """``bodies`` that keep rows: what a layer puts out is what the next one finds."""

        def next_layer(task: Task, views: Views, sweep: Sweep) -> None:
            if task.layer:
                self._keep(task.layer - 1, task.mb or 0, views, sweep)
            bodies[Op.PRE_ATTN](task, views, sweep)

        def after_all(task: Task, views: Views, sweep: Sweep) -> None:
            for number in range(len(sweep.batch.micro_batches)):
                self._keep(self.layers - 1, number, views, sweep)
            bodies[Op.FINAL](task, views, sweep)

        return {**bodies, Op.PRE_ATTN: next_layer, Op.FINAL: after_all}

    def relative_error(self, other: LayerOutputs, layer: int) -> float:
        """Root of the squared difference of ``other`` over that of the squares, after ``layer``."""
        pairs = list(zip(self.rows[layer], other.rows[layer], strict=True))
        error = sum(float((b - a).double().square().sum()) for a, b in pairs)
        whole = sum(float(a.double().square().sum()) for a, _ in pairs)
        return (error / whole) ** 0.5 if whole else 0.0

    def _keep(self, layer: int, number: int, views: Views, sweep: Sweep) -> None:
        hidden: Tensor = views[Buffer("hidden", number)]
        rows = (segment.start for segment in sweep.batch.micro_batches[number].segments)
        kept = [i for i, start in enumerate(rows) if not (self.offset + start) % self.step]
        self.rows.setdefault(layer, []).extend(hidden[i].clone() for i in kept)
