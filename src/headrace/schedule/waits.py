"""Waits, derived from what tasks read and write, across the seam of appended schedules.

A task waits for the last writer of what it reads (RAW), and for the last writer and the readers
since of what it writes (WAW, WAR). Tasks of one lane run in list order, so most of this is
implied; only the waits that neither lane order nor another wait implies are kept. Implication
is decided with vector clocks: a task knows, per lane, how many tasks have ended before it may
start.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.schedule.task import Buffer, Schedule, Task


class Wait(NamedTuple):
    """Wait until task number ``position`` of ``lane`` has ended.

    Positions count the tasks of a lane from the start of the Hazards, over all schedules.
    """

    lane: str
    position: int


TaskWaits = tuple[Wait, ...]


class Hazards:
    """Derives the waits of schedules appended one after the other, as if they were one list.

    Costs a few microseconds per task and remembers only the last accesses of each buffer.
    """

    def __init__(self) -> None:
        self._serial = 0
        self._count: dict[str, int] = {}
        self._clocks: dict[str, _Clock] = {}  # of the newest task of each lane
        self._writer: dict[Buffer, _Access] = {}
        self._readers: dict[Buffer, dict[str, _Access]] = {}  # since the last write, per lane

    def append(self, schedule: Schedule) -> tuple[TaskWaits, ...]:
        """The reduced waits of each task of ``schedule``, behind all that came before."""
        return tuple([self.add(task) for task in schedule.tasks])

    def add(self, task: Task) -> TaskWaits:
        """The reduced waits of one more task."""
        lane = task.lane
        clock = dict(self._clocks.get(lane, _NOTHING))
        waits: list[Wait] = []
        found = self._candidates(task)
        # Newest first: whatever an older candidate could imply, a newer one implies as well.
        for serial in sorted(found, reverse=True):
            access = found[serial]
            if clock.get(access.lane, -1) < access.position:
                waits.append(Wait(access.lane, access.position))
                _merge(clock, access.clock)
        clock[lane] = position = self._count.get(lane, 0)
        self._count[lane] = position + 1
        self._clocks[lane] = clock
        self._note(task, _Access(self._serial, lane, position, clock))
        self._serial += 1
        return tuple(waits)

    def _candidates(self, task: Task) -> dict[int, _Access]:
        """Accesses by other lanes that conflict with the task's own, by their place."""
        found: dict[int, _Access] = {}
        own, writers = task.lane, self._writer
        for buffer in task.reads:
            writer = writers.get(buffer)
            if writer is not None and writer.lane != own:
                found[writer.serial] = writer
        for buffer in task.writes:
            writer = writers.get(buffer)
            if writer is not None and writer.lane != own:
                found[writer.serial] = writer
            for lane, reader in self._readers.get(buffer, _NOBODY).items():
                if lane != own:
                    found[reader.serial] = reader
        return found

    def _note(self, task: Task, access: _Access) -> None:
        lane, readers = access.lane, self._readers
        for buffer in task.reads:
            by_lane = readers.get(buffer)
            if by_lane is None:
                readers[buffer] = {lane: access}
            else:
                by_lane[lane] = access
        for buffer in task.writes:
            self._writer[buffer] = access
            readers.pop(buffer, None)


_Clock = dict[str, int]
"""Lane -> position of its newest task that has ended."""

_NOTHING: _Clock = {}


class _Access:
    """One task's place in the list, and what is known to have ended once it has ended."""

    __slots__ = ("clock", "lane", "position", "serial")

    def __init__(self, serial: int, lane: str, position: int, clock: _Clock) -> None:
        self.serial = serial
        self.lane = lane
        self.position = position
        self.clock = clock


_NOBODY: dict[str, _Access] = {}


def _merge(clock: _Clock, other: _Clock) -> None:
    for lane, position in other.items():
        if clock.get(lane, -1) < position:
            clock[lane] = position
