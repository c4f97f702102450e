"""One appended schedule under way: the record that a machine keeps, the ticket that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from headrace.errors import TaskError
from headrace.machines.trace import Span, SweepTrace
from headrace.schedule.task import Schedule, Task


class Run:
    """Sweep number ``index`` of a machine; ``trace`` stands once it has ended well."""

    def __init__(self, index: int, schedule: Schedule, sweep: Any) -> None:
        self.index = index
        self.schedule = schedule
        self.sweep = sweep
        self.dropped = False
        self.trace: SweepTrace | None = None
        self._spans: list[Span] = []

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.dropped or self.trace is not None

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        return len(self.schedule.tasks) - len(self._spans)

    def record(self, task: int, start: float, end: float) -> bool:
        """Note that a task has run; True when it was the last."""
        self._spans.append(Span(task, start, end))
        return not self.left

    def finished(self) -> SweepTrace:
        """The trace of all that was recorded, spans in list order."""
        return SweepTrace(self.index, self.schedule, tuple(sorted(self._spans)), self.sweep)

    def error(self, task: Task, cause: BaseException) -> TaskError:
        """What to raise when the body of ``task`` raised ``cause``."""
        error = TaskError(
            f"{task.label} of sweep {self.index} failed on lane {task.lane}: "
            f"{type(cause).__name__}: {cause}",
            task=task,
            sweep=self.index,
        )
        error.__cause__ = cause
        return error


class _Waiter(Protocol):
    def wait(self, run: Run, timeout: float | None) -> SweepTrace: ...


@dataclass(frozen=True)
class RunTicket:
    """A Ticket: waiting is the machine's business."""

    machine: _Waiter
    run: Run

    def wait(self, timeout: float | None = None) -> SweepTrace:
        """See Ticket."""
        return self.machine.wait(self.run, timeout)
