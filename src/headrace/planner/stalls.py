"""Time in which arithmetic stood still because a core was somebody else's.

Where the machine is one of several on its host, a core is taken away for some ten milliseconds now
and then. Mostly that is so while pages are read beside arithmetic that keeps all cores busy: the
host copies pages in time that it counts as this machine's. Such moments belong to no operation (one
that takes a millisecond a layer may see none in a rehearsal, or a third more than in a run), and
come as often as reads and arithmetic go on together, which is another share in every plan.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from headrace.planner.timed import PAGE_READ_OP, Sweeps, Timed
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM

SLOWED = 2.0
"""Times the median of its like that a task takes by itself at most: the rest it stood still."""

MOST_AT_ONCE = 0.05
"""Share of a load's arithmetic that a single moment counts as at most: what stands still for longer
is disturbed, as a long run seldom is."""

MOST_CONTENTION = 1.0

_SEEN = 0.5
"""Of a load's arithmetic that its reads take at least, and the other way, to show contention."""


class Settled(NamedTuple):
    """Loads as they would have been without contention, and how much there was: ``Hardware`` says
    what it means."""

    loads: list[Sweeps]
    contention: float


def settled(loads: Sequence[Sweeps], roofs: Mapping[str, float]) -> Settled:
    """Of loads in which pages are read all the time, arithmetic and reads less what they lost; of
    the others, what tasks lost is shared by all arithmetic of their load, each by its length."""
    found = [_Load.of(sweeps, roofs) for sweeps in loads]
    lost = beside = 0.0
    for load in found:
        if load.shows:
            lost += load.lost
            beside += together(load.moving, load.reading)
    contention = min(MOST_CONTENTION, lost / beside) if beside else 0.0
    return Settled([list(load.settled()) for load in found], contention)


def together(arithmetic: float, reads: float) -> float:
    """Seconds in which reads meet arithmetic that keeps all cores busy, of a sweep that would take
    them so long apart. Where arithmetic waits for reads, cores are free in between, the more the
    longer it waits."""
    return reads if arithmetic >= reads else arithmetic * arithmetic / reads


class _Load(NamedTuple):
    """Sweeps and what each of their tasks takes by itself; all their arithmetic so, and what it
    lost; reads less that, 0 where they do not go on all the time."""

    sweeps: Sweeps
    alone: list[list[float]]
    moving: float
    lost: float
    reading: float

    @classmethod
    def of(cls, sweeps: Sweeps, roofs: Mapping[str, float]) -> _Load:
        alone = _alone(sweeps, roofs)
        pairs = [
            (task.seconds, seconds)
            for sweep, each in zip(sweeps, alone, strict=True)
            for task, seconds in zip(sweep, each, strict=True)
            if is_arithmetic(task)
        ]
        moving = math.fsum(seconds for _, seconds in pairs)
        lost = math.fsum(min(took - seconds, MOST_AT_ONCE * moving) for took, seconds in pairs)
        reads = next((t.seconds for sweep in sweeps for t in sweep if t.op == PAGE_READ_OP), 0.0)
        return cls(sweeps, alone, moving, lost, max(reads - lost, reads / (1 + MOST_CONTENTION)))

    @property
    def shows(self) -> bool:
        """Whether reads and arithmetic went on beside each other for long."""
        return self.reading >= _SEEN * self.moving and self.moving >= _SEEN * self.reading

    def settled(self) -> Iterator[list[Timed]]:
        """Its sweeps; all reads are in each of them."""
        slower = 1.0 if self.reading or not self.moving else 1 + self.lost / self.moving
        for sweep, alone in zip(self.sweeps, self.alone, strict=True):
            yield [
                task._replace(seconds=seconds * slower)
                if is_arithmetic(task)
                else task._replace(seconds=self.reading)
                if task.op == PAGE_READ_OP
                else task
                for task, seconds in zip(sweep, alone, strict=True)
            ]


def is_arithmetic(task: Timed) -> bool:
    """Whether a processor works on it all the time, by the roofs it uses."""
    amounts = task.amounts
    return amounts.get(CPU_FLOPS, 0.0) > 0 or (amounts.get(DRAM, 0.0) > 0 and DISK not in amounts)


def _alone(sweeps: Sweeps, roofs: Mapping[str, float]) -> list[list[float]]:
    """Seconds that each task takes by itself: at most SLOWED times what its like take."""
    alike: dict[tuple[str, int], list[float]] = {}
    for task in (task for sweep in sweeps for task in sweep if is_arithmetic(task)):
        alike.setdefault(_like(task), []).append(task.seconds / _least(task, roofs))
    typical = {like: statistics.median(each) for like, each in alike.items()}

    def alone(task: Timed) -> float:
        if not is_arithmetic(task):
            return task.seconds
        return min(task.seconds, SLOWED * typical[_like(task)] * _least(task, roofs))

    return [[alone(task) for task in sweep] for sweep in sweeps]


def _like(task: Timed) -> tuple[str, int]:
    return task.op, int(math.log2(max(1.0, task.rows)))


def _least(task: Timed, roofs: Mapping[str, float]) -> float:
    return max(amount / roofs[roof] for roof, amount in task.amounts.items() if roof in roofs)
