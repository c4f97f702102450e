"""A double for any model: a buffer holds the name of the expression that computed it.

A task writes a term made of its label and of the terms that it read, so two runs end alike only
if every task read exactly what it should have. Much cheaper than arithmetic, and no luck in it.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from typing import Any

from headrace.machines.machine import Body, Views
from headrace.schedule.task import Buffer, Op, Task


class Terms:
    """Memory of terms, with a body for every op. ``spoilt`` terms are never alike."""

    def __init__(self) -> None:
        self.memory: dict[Buffer, list[int]] = defaultdict(lambda: [0])
        self.bodies: dict[Op, Body] = dict.fromkeys(Op, self._body)
        self._spoilt = count(1)

    def view(self, buffer: Buffer) -> list[int]:
        """A buffer is a list of one term."""
        return self.memory[buffer]

    def poison(self, buffer: Buffer) -> None:
        """Put in a term that no task computes."""
        self.memory[buffer][0] = hash(("spoilt", next(self._spoilt)))

    def outcome(self) -> tuple[int, ...]:
        """What is left of a run: the requests, who held the baton, and the KV of each part."""
        parts = sorted(buffer for buffer in self.memory if buffer.name == "kv_part")
        left = (Buffer("requests"), Buffer("baton"), *parts)
        return tuple(self.memory[buffer][0] for buffer in left)

    def _body(self, task: Task, views: Views, sweep: Any) -> None:
        read = tuple([views[buffer][0] for buffer in task.reads])
        for buffer in task.writes:
            views[buffer][0] = hash((task.op, task.layer, task.mb, task.page, buffer, read))
