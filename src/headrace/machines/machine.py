"""The contract every machine keeps. A machine runs schedules and returns traces.

1. Tasks of one lane start in list order.
2. A task starts after the tasks it waits for.
3. A schedule appended to a running machine behaves as one list with what came before.
4. It can be cancelled at a task boundary.
5. Spans of one lane never overlap.
6. An exception in a body cancels, is re-raised once (as TaskError, with task and sweep named)
   and leaves the machine reusable.
7. What a sweep commits, its COMMIT body commits: a cancelled sweep leaves no trace.
8. Spans go to a sink per sweep; nothing is kept unless the sink keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task

Views = Mapping[Buffer, Any]
"""A task's declared buffers, and no others."""

Body = Callable[[Task, Views, Any], None]
"""``body(task, views, sweep)``; ``sweep`` is whatever was given to ``append``."""

Bodies = Mapping[Op, Body]

Passes = Callable[[Task, Any], bool]
"""``passes(task, sweep)``: whether the body would do nothing, by what the sweep knows by then."""

ViewOf = Callable[[Buffer], Any]
"""The view of a buffer: the same one every time, so that machines may ask once per schedule."""

Clock = Callable[[], float]
Sink = Callable[[SweepTrace], None]


class Ticket(Protocol):
    """A handle on one appended schedule."""

    def wait(self, timeout: float | None = None) -> SweepTrace:
        """Block until the sweep has ended and return its trace.

        Raises TaskError if a body of this or an earlier sweep raised, Cancelled if the
        machine was cancelled first, TimeoutError after ``timeout`` seconds.
        """
        ...


class Machine(Protocol):
    """Runs schedules one after the other, overlapped as far as waits allow."""

    def append(self, schedule: Schedule, sweep: Any) -> Ticket:
        """Add ``schedule`` behind all that was appended before; returns at once."""
        ...

    def cancel(self) -> None:
        """Stop at the next task boundary, forget what has not run; reusable afterwards."""
        ...

    def close(self) -> None:
        """Cancel, then give threads back. Idempotent."""
        ...


class Cancelled(Exception):  # noqa: N818 (control flow, as asyncio.CancelledError)
    """The machine was cancelled before the sweep ended."""
