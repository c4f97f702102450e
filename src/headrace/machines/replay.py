"""The virtual machine for lists that are played many times: waits are derived once.

Same rules and same times as ``virtual.Virtual``, which is the definition. Tasks that cost the same
have one *kind*; what changes from play to play is the cost of each kind, never the list. Fair
speeds are worked out once per set of kinds that run together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from headrace.errors import ScheduleError
from headrace.machines.virtual import fair_speeds
from headrace.schedule.task import Task
from headrace.schedule.waits import Hazards


class Cost(NamedTuple):
    """``alone`` seconds that a task takes by itself, and the seconds of each roof in them."""

    alone: float
    roofs: Mapping[str, float]

    @property
    def demand(self) -> dict[str, float]:
        """Shares of roofs that it draws while it runs at full speed."""
        return {roof: seconds / self.alone for roof, seconds in self.roofs.items() if seconds}


KindOf = Callable[[Task], Hashable]


class Score:
    """Lists of tasks appended one after the other, ready to be played at any costs.

    ``kind_of`` gives each task its kind. Of the last list only the first ``most_of_last``
    tasks are kept: it is there so that the tail of the one before is not idle.
    """

    def __init__(
        self,
        lists: Sequence[Sequence[Task]],
        kind_of: KindOf,
        most_of_last: int | None = None,
    ) -> None:
        self.kinds: list[Hashable] = []
        self.tasks: list[Task] = []
        self.lasts: list[int] = []  # of each list, how many tasks end with it
        self._numbers: dict[Hashable, int] = {}
        self._lanes: dict[str, int] = {}
        self._queues: list[list[_Entry]] = []
        hazards = Hazards()
        for number, tasks in enumerate(lists):
            last = number == len(lists) - 1
            for task in tasks[: most_of_last if last else None]:
                lane = self._lane(task.lane)
                before = tuple([(self._lane(w.lane), w.position) for w in hazards.add(task)])
                kind = self._kind(kind_of(task))
                self._queues[lane].append(_Entry(len(self.tasks), kind, before))
                self.tasks.append(task)
            self.lasts.append(len(self.tasks))

    def play(self, costs: Mapping[Hashable, Cost], sweeps: int | None = None) -> list[float]:
        """The end of each task, in list order; of tasks behind list number ``sweeps`` only of
        those that ended before it did (others: 0). Raises ScheduleError if all wait for another.
        """
        wanted = self.lasts[-1 if sweeps is None else sweeps - 1]
        return _Play(self._queues, [costs[kind] for kind in self.kinds], wanted).ends(
            len(self.tasks)
        )

    def _lane(self, name: str) -> int:
        if name not in self._lanes:
            self._lanes[name] = len(self._queues)
            self._queues.append([])
        return self._lanes[name]

    def _kind(self, kind: Hashable) -> int:
        if kind not in self._numbers:
            self._numbers[kind] = len(self.kinds)
            self.kinds.append(kind)
        return self._numbers[kind]


class _Entry(NamedTuple):
    place: int
    kind: int
    waits: tuple[tuple[int, int], ...]


_IDLE = -1


class _Play:
    """One play. ``wanted``: it is over when all tasks before this place have ended."""

    def __init__(self, queues: list[list[_Entry]], costs: list[Cost], wanted: int) -> None:
        self._queues = queues
        self._alone = [cost.alone for cost in costs]
        self._demands = [cost.demand if cost.alone else {} for cost in costs]
        self._wanted = wanted
        self._left_to_end = wanted
        self._running = [_IDLE] * len(queues)  # kind, by lane
        self._left = [0.0] * len(queues)
        self._done = [0] * len(queues)
        self._speeds: dict[tuple[int, ...], list[tuple[int, float]]] = {}

    def ends(self, tasks: int) -> list[float]:
        ends, now = [0.0] * tasks, 0.0
        running, left, alone = self._running, self._left, self._alone
        while True:
            self._start(now, ends)
            if not self._left_to_end:
                return ends
            key = tuple(running)
            moving = self._speeds.get(key) or self._fair(key)
            step = min([left[lane] / speed for lane, speed in moving])
            now += step
            for lane, speed in moving:
                rest = left[lane] - step * speed
                left[lane] = rest
                if rest <= 1e-9 * alone[running[lane]]:
                    self._end(lane, now, ends)

    def _start(self, now: float, ends: list[float]) -> None:
        """Start whatever may start; tasks that take no time end at once, and may free others."""
        running, done = self._running, self._done
        again = True
        while again:
            again = False
            for lane, queue in enumerate(self._queues):
                if running[lane] != _IDLE or done[lane] >= len(queue):
                    continue
                entry = queue[done[lane]]
                for other, position in entry.waits:
                    if done[other] <= position:
                        break
                else:
                    running[lane] = entry.kind
                    self._left[lane] = self._alone[entry.kind]
                    if not self._left[lane]:
                        self._end(lane, now, ends)
                        again = True

    def _end(self, lane: int, now: float, ends: list[float]) -> None:
        place = self._queues[lane][self._done[lane]].place
        ends[place] = now
        self._done[lane] += 1
        self._running[lane] = _IDLE
        if place < self._wanted:
            self._left_to_end -= 1

    def _fair(self, key: tuple[int, ...]) -> list[tuple[int, float]]:
        lanes = [lane for lane, kind in enumerate(key) if kind != _IDLE]
        if not lanes:
            raise ScheduleError("no task can start: the schedule waits for itself")
        speeds = fair_speeds([self._demands[key[lane]] for lane in lanes])
        found = list(zip(lanes, speeds, strict=True))
        self._speeds[key] = found
        return found
