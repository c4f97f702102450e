"""Waits, derived from what tasks read and write, across the seam of appended schedules.

A task waits for the last writer of what it reads (RAW), and for the last writer and the readers
since of what it writes (WAW, WAR). Tasks of one lane run in list order, so most of this is
implied; only the waits that neither lane order nor another wait implies are kept. Implication
is decided with vector clocks: a task knows, per lane, how many tasks have ended before it may
start.
"""

from __future__ import annotations

from collections import Counter
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

    Costs a few microseconds per task and remembers only the last accesses of each buffer. The
    same list again and again costs less: its waits only move.
    """

    def __init__(self) -> None:
        self._repeats: _Repeats | None = None
        self._serial = 0
        self._count: dict[str, int] = {}
        self._clocks: dict[str, _Clock] = {}  # of the newest task of each lane
        self._writer: dict[Buffer, _Access] = {}
        self._readers: dict[Buffer, dict[str, _Access]] = {}  # since the last write, per lane

    def append(self, schedule: Schedule) -> tuple[TaskWaits, ...]:
        """The reduced waits of each task of ``schedule``, behind all that came before."""
        repeats = self._repeats
        if repeats is None or repeats.schedule is not schedule:
            self._catch_up()
            repeats = self._repeats = _Repeats(schedule)
        if repeats.settled:
            repeats.skipped += 1
            return repeats.moved()
        repeats.rounds += 1
        repeats.waits = self._derive(schedule)
        return repeats.waits

    def add(self, task: Task) -> TaskWaits:
        """The reduced waits of one more task."""
        self._catch_up()
        self._repeats = None
        return self._add(task)

    def _catch_up(self) -> None:
        """Note what was appended but not derived: the last rounds stand for all."""
        repeats = self._repeats
        if repeats is None or not repeats.skipped:
            return
        passed = max(0, repeats.skipped - repeats.enough)
        self._serial += passed * len(repeats.schedule.tasks)
        for lane, tasks in repeats.per_lane.items():
            self._count[lane] += passed * tasks
        for _ in range(repeats.skipped - passed):
            self._derive(repeats.schedule)

    def _derive(self, schedule: Schedule) -> tuple[TaskWaits, ...]:
        return tuple([self._add(task) for task in schedule.tasks])

    def _add(self, task: Task) -> TaskWaits:
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


class _Repeats:
    """The same schedule several times in a row.

    From the second round on every wait is for a task of this round or the one before: whatever
    came earlier was waited for in the first, or is implied since. What a task knows about rounds
    before these implies none of them, and what it knows of these is the same in each: so waits
    move with the rounds. What is known of tasks before the first round may still spread from lane
    to lane, once per round; then nothing changes any more.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.per_lane = Counter(task.lane for task in schedule.tasks)
        self.enough = len(self.per_lane) + 1
        self.rounds = 0
        self.skipped = 0
        self.waits: tuple[TaskWaits, ...] = ()  # of the last round that was derived

    @property
    def settled(self) -> bool:
        return self.rounds > self.enough

    def moved(self) -> tuple[TaskWaits, ...]:
        """The waits of the round that was skipped last."""
        by = {lane: self.skipped * tasks for lane, tasks in self.per_lane.items()}
        return tuple(
            [tuple([Wait(lane, at + by[lane]) for lane, at in waits]) for waits in self.waits]
        )


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
