"""Waits, derived from what tasks read and write, across the seam of appended schedules.

A task waits for the last writer of what it reads (RAW), and for the last writer and the readers
since of what it writes (WAW, WAR). Tasks of one lane run in list order, so most of this is
implied; only the waits that neither lane order nor another wait implies are kept. Implication
is decided with vector clocks: a task knows, per lane, how many tasks have ended before it may
start.
"""

from __future__ import annotations

import weakref
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from headrace.schedule.task import Buffer, Schedule, Task


class Wait(NamedTuple):
    """Wait until task number ``position`` of ``lane`` has ended.

    Positions count the tasks of a lane from the start of the Hazards, over all schedules; those of
    a Placed schedule from where it begins, so that what came before has negative ones.
    """

    lane: str
    position: int


TaskWaits = tuple[Wait, ...]


class Placed(NamedTuple):
    """A schedule behind others: the reduced waits of each of its tasks, positions counted from
    where its lanes began, and how many tasks of each lane that was."""

    waits: tuple[TaskWaits, ...]
    start: Mapping[str, int]


MOST_TASKS = 40_000
"""Tasks whose waits are remembered, about 200 bytes each."""


class Hazards:
    """Derives the waits of schedules appended one after the other, as if they were one list.

    Costs a few microseconds per task and remembers only the last accesses of each buffer. A
    schedule that comes again behind the same accesses (the same one every sweep, or a few that go
    round with the places of a ring) costs less, and to ``place`` it next to nothing: its waits only
    move.
    """

    def __init__(self) -> None:
        self.derived = 0  # schedules whose waits were worked out and not moved
        self._accesses = _Accesses()
        # Tasks of each lane that were appended and are not noted there.
        self._beyond: Counter[str] = Counter()
        self._moved: list[tuple[Schedule, _Step]] = []  # the last of them, as far as they matter
        self._noted: bytes | None = None  # name of what is noted
        self._state: bytes | None = None  # name of what it would be with all that was moved
        self._known = _Known()

    def append(self, schedule: Schedule) -> tuple[TaskWaits, ...]:
        """The reduced waits of each task of ``schedule``, behind all that came before."""
        placed = self.place(schedule)
        return _moved(placed.waits, placed.start)

    def place(self, schedule: Schedule) -> Placed:
        """The same, counted from where its lanes begin: what is known is handed out as it is."""
        step = self._known.step(self._state, schedule)
        if step is not None:
            return self._move(schedule, step)
        self._catch_up()
        before, start = self._state, dict(self._accesses.count)
        derived = tuple([self._accesses.add(task) for task in schedule.tasks])
        waits = _moved(derived, {lane: -tasks for lane, tasks in start.items()})
        self.derived += 1
        # Naming costs as much as a few hundred tasks: not before a schedule comes again.
        again = self._known.meet(schedule)
        self._state = self._noted = self._accesses.name() if again else None
        if before is not None and self._state is not None:
            per_lane = Counter(task.lane for task in schedule.tasks)
            self._known.add(before, schedule, _Step(waits, per_lane, self._state))
        return Placed(waits, start)

    def add(self, task: Task) -> TaskWaits:
        """The reduced waits of one more task."""
        self._catch_up()
        self._state = self._noted = None
        return self._accesses.add(task)

    def _move(self, schedule: Schedule, step: _Step) -> Placed:
        start = self._beyond + Counter(self._accesses.count)
        self._beyond.update(step.per_lane)
        self._state = step.leads_to
        # Where it was before, only further on: what led round and back need not be noted.
        passed = [self._noted, *(step.leads_to for _, step in self._moved)]
        if self._state in passed:
            del self._moved[passed.index(self._state) :]
        else:
            self._moved.append((schedule, step))
        return Placed(step.waits, start)

    def _catch_up(self) -> None:
        """Note what was moved."""
        if not self._beyond:
            return
        for _, step in self._moved:
            self._beyond.subtract(step.per_lane)
        self._accesses.move(self._beyond)
        for schedule, _ in self._moved:
            for task in schedule.tasks:
                self._accesses.add(task)
        self._beyond.clear()
        self._moved, self._noted = [], self._state


class _Accesses:
    """The last accesses of each buffer, and what follows from them for the next task."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}  # tasks of each lane
        self._serial = 0
        self._newest: dict[str, _Access] = {}  # of each lane
        self._writer: dict[Buffer, _Access] = {}
        self._readers: dict[Buffer, dict[str, _Access]] = {}  # since the last write, per lane

    def add(self, task: Task) -> TaskWaits:
        """What ``task`` waits for; from now on it is one of those that others wait for."""
        lane = task.lane
        newest = self._newest.get(lane)
        clock = {} if newest is None else dict(newest.clock)
        waits: list[Wait] = []
        found = self._candidates(task)
        # Newest first: whatever an older candidate could imply, a newer one implies as well.
        for serial in sorted(found, reverse=True):
            access = found[serial]
            if clock.get(access.lane, -1) < access.position:
                waits.append(Wait(access.lane, access.position))
                _merge(clock, access.clock)
        clock[lane] = position = self.count.get(lane, 0)
        self.count[lane] = position + 1
        self._newest[lane] = access = _Access(self._serial, lane, position, clock)
        self._note(task, access)
        self._serial += 1
        return tuple(waits)

    def name(self) -> bytes:
        """All that later waits depend on but how far each lane has come: behind equal names the
        same tasks get the same waits, moved, and lead to equal names. For positions on one lane
        are only compared with each other, and so are serials."""
        lanes, seen = list(self.count), dict[int, int]()
        flat = array("i", [len(lanes)])
        for access in self._all():
            if access is None or id(access) in seen:
                flat.append(0 if access is None else seen[id(access)])
                continue
            seen[id(access)] = len(seen) + 1
            flat.append(len(seen))
            flat.append(access.serial - self._serial)
            flat.append(lanes.index(access.lane))
            flat.append(access.position - self.count[access.lane])
            known = access.clock
            flat.extend([known[at] - self.count[at] if at in known else 0 for at in lanes])
        return flat.tobytes()

    def move(self, by: Counter[str]) -> None:
        """The same accesses where lanes have come further by so many tasks."""
        for access in {id(access): access for access in self._all() if access}.values():
            access.position += by[access.lane]
            access.clock = {lane: at + by[lane] for lane, at in access.clock.items()}
        self.count = {lane: tasks + by[lane] for lane, tasks in self.count.items()}

    def _all(self) -> Iterator[_Access | None]:
        """In the same order for the same buffers; None where there is none. Some come twice."""
        yield from self._newest.values()
        lanes = list(self.count)
        for buffer in sorted({*self._writer, *self._readers}):
            yield self._writer.get(buffer)
            readers = self._readers.get(buffer, _NOBODY)
            yield from (readers.get(lane) for lane in lanes)

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


class _Step(NamedTuple):
    """What a schedule came to: waits counted from where its lanes began, tasks per lane, and the
    name of the accesses behind it."""

    waits: tuple[TaskWaits, ...]
    per_lane: Mapping[str, int]
    leads_to: bytes


def _moved(waits: tuple[TaskWaits, ...], by: Mapping[str, int]) -> tuple[TaskWaits, ...]:
    return tuple(
        [each and tuple([Wait(lane, at + by.get(lane, 0)) for lane, at in each]) for each in waits]
    )


class _Known:
    """Steps by the state they lead from and the schedule that takes them, as long as that lives."""

    def __init__(self) -> None:
        self._of: dict[int, _Met] = {}  # by id of the schedule
        self._tasks = 0

    def meet(self, schedule: Schedule) -> bool:
        """Whether ``schedule`` was met before, and more steps may be known."""
        met = self._of.get(id(schedule))
        if met is None or met.schedule() is not schedule:
            self._of = {number: met for number, met in self._of.items() if met.schedule()}
            self._of[id(schedule)] = _Met(weakref.ref(schedule), {})
            self._tasks = sum(met.tasks for met in self._of.values())
            return False
        return self._tasks < MOST_TASKS

    def step(self, state: bytes | None, schedule: Schedule) -> _Step | None:
        """What ``schedule`` comes to behind ``state``, if it is known."""
        met = self._of.get(id(schedule))
        if state is None or met is None or met.schedule() is not schedule:
            return None
        return met.steps.get(state)

    def add(self, state: bytes, schedule: Schedule, step: _Step) -> None:
        """Remember a step of a schedule that was met."""
        self._of[id(schedule)].steps[state] = step
        self._tasks += len(step.waits)


class _Met(NamedTuple):
    schedule: weakref.ref[Schedule]
    steps: dict[bytes, _Step]

    @property
    def tasks(self) -> int:
        return sum(len(step.waits) for step in self.steps.values())


_Clock = dict[str, int]
"""Lane -> position of its newest task that has ended."""


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
