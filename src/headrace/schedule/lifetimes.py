"""When buffers are in use, and what memory that takes.

A buffer's name is its bytes: no two names share memory, so a buffer is held from a run's first
schedule to its last, and a tier's peak is the sum over the names that any schedule touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headrace.schedule.task import Buffer, Schedule, Task


class Lifetime(NamedTuple):
    """Indices of the first and last task of a schedule that touch a buffer."""

    first: int
    last: int


def lifetimes(schedule: Schedule) -> dict[Buffer, Lifetime]:
    """First and last use of every buffer, in order of first use."""
    found: dict[Buffer, Lifetime] = {}
    for index, task in enumerate(schedule.tasks):
        for buffer in (*task.reads, *task.writes):
            found[buffer] = Lifetime(found.get(buffer, Lifetime(index, index)).first, index)
    return found


def peak_bytes(schedules: Iterable[Schedule]) -> dict[str, int]:
    """Tier -> bytes that its arena hands out to run ``schedules``, at the policy's maxima."""
    held: dict[Buffer, tuple[str, int]] = {}
    for schedule in schedules:
        for buffer, size in schedule.sizes.items():
            held[buffer] = max(held.get(buffer, size), size)
    peaks: dict[str, int] = {}
    for tier, count in held.values():
        peaks[tier] = peaks.get(tier, 0) + count
    return peaks


class Value(NamedTuple):
    """What a buffer holds between two writes that do not read it."""

    buffer: Buffer
    version: int


def values(tasks: Sequence[Task]) -> list[tuple[Value, ...]]:
    """The values each task touches, when ``tasks`` run in list order.

    A value is dead once every task that touches it has run; the last version of a buffer never
    dies, for the next schedule may read it.
    """
    version: dict[Buffer, int] = {}
    touched = []
    for task in tasks:
        for buffer in task.writes:
            if buffer not in task.reads:
                version[buffer] = version.get(buffer, 0) + 1
        buffers = dict.fromkeys((*task.reads, *task.writes))
        touched.append(tuple(Value(b, version.setdefault(b, 0)) for b in buffers))
    return touched
