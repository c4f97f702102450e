"""Orders in which one thread may run appended schedules: all that lanes and waits allow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from headrace.schedule.task import Schedule, Task
from headrace.schedule.waits import Hazards


class Edge(NamedTuple):
    """Task ``after`` waits for task ``before`` (places in the whole list)."""

    before: int
    after: int


@dataclass(frozen=True)
class TaskGraph:
    """The tasks of appended schedules as one list, and what holds each of them back."""

    tasks: tuple[Task, ...]
    lane_edges: tuple[Edge, ...]
    waits: tuple[Edge, ...]

    @classmethod
    def of(cls, schedules: Iterable[Schedule]) -> TaskGraph:
        """Derive the waits of ``schedules``, appended in turn."""
        hazards = Hazards()
        tasks: list[Task] = []
        lanes: dict[str, list[int]] = {}
        lane_edges, waits = [], []
        for schedule in schedules:
            for task, found in zip(schedule.tasks, hazards.append(schedule), strict=True):
                place, lane = len(tasks), lanes.setdefault(task.lane, [])
                if lane:
                    lane_edges.append(Edge(lane[-1], place))
                waits += [Edge(lanes[wait.lane][wait.position], place) for wait in found]
                lane.append(place)
                tasks.append(task)
        return cls(tuple(tasks), tuple(lane_edges), tuple(waits))

    def predecessors(self, without: Edge | None = None) -> list[list[int]]:
        """What each task comes right after; ``without`` leaves one wait out."""
        found: list[list[int]] = [[] for _ in self.tasks]
        for edge in (*self.lane_edges, *self.waits):
            if edge != without:
                found[edge.after].append(edge.before)
        return found


Order = Callable[[TaskGraph], Sequence[int]]
"""A way to run a graph: places in the list, each once."""


def list_order(graph: TaskGraph) -> Sequence[int]:
    """Top to bottom: what a schedule means."""
    return range(len(graph.tasks))


def delaying(task: int, without: Edge | None = None) -> Order:
    """``task``, and what comes after it, as late as may be; all else goes first.

    With a wait kept, this is the legal order that tries hardest to do without the task waited
    for; ``without`` that wait, it does the harm that the wait prevents.
    """

    def order(graph: TaskGraph) -> Sequence[int]:
        late = {task}
        for place, before in enumerate(graph.predecessors(without)):
            if not late.isdisjoint(before):
                late.add(place)
        return _two_parts(len(graph.tasks), late)

    return order


def breaking(wait: Edge) -> Order:
    """The order that shows what ``wait`` is for, were it missing."""
    return delaying(wait.before, without=wait)


def shuffled(random: Random) -> Order:
    """Any legal order, drawn by ``random``."""

    def order(graph: TaskGraph) -> Sequence[int]:
        left = [len(before) for before in graph.predecessors()]
        then: list[list[int]] = [[] for _ in graph.tasks]
        for place, before in enumerate(graph.predecessors()):
            for other in before:
                then[other].append(place)
        ready = [place for place, count in enumerate(left) if not count]
        done = []
        while ready:
            place = ready.pop(random.randrange(len(ready)))
            done.append(place)
            for after in then[place]:
                left[after] -= 1
                if not left[after]:
                    ready.append(after)
        return done

    return order


def _two_parts(count: int, late: Collection[int]) -> list[int]:
    first = [place for place in range(count) if place not in late]
    return first + sorted(late)
