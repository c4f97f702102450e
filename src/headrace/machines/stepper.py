"""One thread, one task after the other: list order, or an order that hunts for missing waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from headrace.machines.machine import Bodies, Cancelled, Sink, ViewOf
from headrace.machines.orders import Order, Plan, list_order
from headrace.machines.run import Run
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

    def append(self, schedule: Schedule, sweep: Any) -> StepperTicket:
        """Add ``schedule`` behind all that was appended before."""
        run = Run(self._appended, schedule, sweep)
        self._appended += 1
        self._pending.append(run)
        return StepperTicket(self, run)

    def run(self) -> None:
        """Run all that was appended. Raises TaskError if a body raises, and forgets the rest."""
        pending, self._pending = self._pending, []
        places = [(run, index) for run in pending for index in range(len(run.schedule.tasks))]
        plan = Plan.of(run.schedule for run in pending)
        mourn = _Mourner(plan, self._poison) if self._poison else None
        try:
            for place in self._order(plan):
                self._step(*places[place])
                if mourn:
                    mourn.after(place)
        finally:
            for run in pending:
                run.dropped = run.trace is None

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


class StepperTicket:
    """A sweep of a Stepper; waiting for it makes it run."""

    def __init__(self, stepper: Stepper, run: Run) -> None:
        self._stepper = stepper
        self._run = run

    def wait(self, timeout: float | None = None) -> SweepTrace:
        """Run what was appended, this sweep included, and return its trace (see Ticket)."""
        if not self._run.over:
            self._stepper.run()
        if self._run.trace is None:
            raise Cancelled
        return self._run.trace


class _Mourner:
    """Poisons what a buffer held once the last task that touches it has run."""

    def __init__(self, plan: Plan, poison: Poison) -> None:
        self._poison = poison
        self._touched = values(plan.tasks)
        self._left = Counter(value for touched in self._touched for value in touched)
        self._newest = {value.buffer: value for touched in self._touched for value in touched}

    def after(self, place: int) -> None:
        for value in self._touched[place]:
            self._left[value] -= 1
            if not self._left[value] and self._newest[value.buffer] != value:
                self._poison(value.buffer)
