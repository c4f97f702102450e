"""One thread, one task after the other: list order, or an order that hunts for missing waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from headrace.machines.machine import Bodies, Cancelled, Sink, ViewOf
from headrace.machines.orders import Order, TaskGraph, list_order
from headrace.machines.run import Run, RunTicket
from headrace.machines.trace import SweepTrace
from headrace.schedule.lifetimes import values
from headrace.schedule.task import Buffer, Schedule, Task

Poison = Callable[[Buffer], None]
"""Spoil a buffer's memory: whoever reads it before it is written again shall be found out."""


class Stepper:
    """The definition of what schedules mean, and the machine that tests them.

    Nothing runs until a ticket is waited for; then all that was appended runs, in ``order``
    (any order of ``orders``, over the whole of it). Spans count steps, not seconds. With
    ``poison``, a buffer is spoilt as soon as nobody in the list needs what it holds.
    """

    def __init__(
        self,
        bodies: Bodies,
        view_of: ViewOf,
        order: Order = list_order,
        poison: Poison | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._bodies = bodies
        self._view_of = view_of
        self._order = order
        self._poison = poison
        self._sink = sink
        self._pending: list[Run] = []
        self._appended = 0
        self._steps = 0

    def append(self, schedule: Schedule, sweep: Any) -> RunTicket:
        """Add ``schedule`` behind all that was appended before."""
        run = Run(self._appended, schedule, sweep)
        self._appended += 1
        self._pending.append(run)
        return RunTicket(self, run)

    def run(self) -> None:
        """Run all that was appended. Raises TaskError if a body raises, and forgets the rest."""
        pending, self._pending = self._pending, []
        places = [(run, index) for run in pending for index in range(len(run.schedule.tasks))]
        graph = TaskGraph.of(run.schedule for run in pending)
        mourn = _Mourner(graph, self._poison) if self._poison else None
        try:
            for place in self._order(graph):
                self._step(*places[place])
                if mourn:
                    mourn.after(place)
        finally:
            for run in pending:
                run.dropped = run.trace is None

    def wait(self, run: Run, timeout: float | None = None) -> SweepTrace:
        """Run all that was appended, and return the trace of ``run`` (see Ticket)."""
        if not run.over:
            self.run()
        if run.trace is None:
            raise Cancelled
        return run.trace

    def cancel(self) -> None:
        """Forget what has not run."""
        for run in self._pending:
            run.dropped = True
        self._pending = []

    def close(self) -> None:
        """Cancel; there are no threads to give back."""
        self.cancel()

    def _step(self, run: Run, index: int) -> None:
        task: Task = run.schedule.tasks[index]
        views = {buffer: self._view_of(buffer) for buffer in (*task.reads, *task.writes)}
        try:
            self._bodies[task.op](task, views, run.sweep)
        except Exception as cause:
            raise run.error(task, cause) from cause
        self._steps += 1
        if run.record(index, self._steps - 1, self._steps):
            run.trace = run.finished()
            if self._sink:
                self._sink(run.trace)


class _Mourner:
    """Poisons what a buffer held once the last task that touches it has run."""

    def __init__(self, graph: TaskGraph, poison: Poison) -> None:
        self._poison = poison
        self._touched = values(graph.tasks)
        self._left = Counter(value for touched in self._touched for value in touched)
        self._newest = {value.buffer: value for touched in self._touched for value in touched}

    def after(self, place: int) -> None:
        for value in self._touched[place]:
            self._left[value] -= 1
            if not self._left[value] and self._newest[value.buffer] != value:
                self._poison(value.buffer)
