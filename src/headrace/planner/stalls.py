"""Moments in which a core was somebody else's, spread over all arithmetic of a load.

Where the machine is one of several on its host, a core is taken away for some ten milliseconds now
and then: most often while pages are read, since the host copies them on cores that it counts as
this machine's. (A virtual machine of two cores that reads 1.2 GB/s beside its arithmetic was seen
to lose a fifth of it so, one that reads beside nothing lost none.) A load played for a second sees
a few dozen such moments. They belong to no operation: of one that takes a millisecond a layer most
rehearsals see none, and one of them a third more than a run will.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from headrace.planner.timed import PER_EXPERT, Sweeps, Timed, op_of
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, Curve, share_at

SLOWED = 2.0
"""Times the median of its like that a task takes by itself at most: the rest it stood still."""

MOST_AT_ONCE = 0.05
"""Share of a load's arithmetic that a single moment counts as at most: what stands still for longer
is disturbed, as a long run seldom is."""


def spread(loads: Sequence[Sweeps], roofs: Mapping[str, float]) -> list[Sweeps]:
    """``loads``, the time in which tasks of arithmetic stood still taken from those that did and
    given to all of their load, each by its length. What an expert gets is that of loads whose
    experts have as many rows as it has: in a load some have many and some few, but how long reads
    go on beside them is a matter of all."""
    found = [_Load.of(sweeps, roofs) for sweeps in loads]
    of_experts = _by_rows(found)

    def spread_task(task: Timed, moving: float, slower: float) -> Timed:
        if not is_arithmetic(task):
            return task
        if task.op in of_experts:
            slower = share_at(of_experts[task.op], max(task.rows, 1.0))
        return task._replace(seconds=moving * slower)

    return [
        [
            [spread_task(*both, load.slower) for both in zip(sweep, moving, strict=True)]
            for sweep, moving in zip(load.sweeps, load.moving, strict=True)
        ]
        for load in found
    ]


class _Load(NamedTuple):
    """Sweeps, what each of their tasks takes by itself, and how much slower arithmetic was than
    that, all in all."""

    sweeps: Sweeps
    moving: list[list[float]]
    slower: float

    @classmethod
    def of(cls, sweeps: Sweeps, roofs: Mapping[str, float]) -> _Load:
        moving = _moving(sweeps, roofs)
        pairs = [
            (task.seconds, seconds)
            for sweep, each in zip(sweeps, moving, strict=True)
            for task, seconds in zip(sweep, each, strict=True)
            if is_arithmetic(task)
        ]
        total = math.fsum(seconds for _, seconds in pairs)
        most = MOST_AT_ONCE * total
        lost = math.fsum(min(took - seconds, most) for took, seconds in pairs)
        return cls(sweeps, moving, 1 + lost / total if total else 1.0)


def is_arithmetic(task: Timed) -> bool:
    """Whether a processor works on it all the time, by the roofs it uses."""
    return task.amounts.get(CPU_FLOPS, 0.0) > 0 or (
        task.amounts.get(DRAM, 0.0) > 0 and task.amounts.get(DISK, 0.0) == 0
    )


def _moving(sweeps: Sweeps, roofs: Mapping[str, float]) -> list[list[float]]:
    """Seconds that each task takes by itself: those of its like, if it took far longer."""
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


def _by_rows(loads: Iterable[_Load]) -> dict[str, Curve]:
    """Op with a task per expert -> (mean rows of its tasks in a load, how much slower)."""
    points: dict[str, dict[float, list[float]]] = {}
    for load in loads:
        rows: dict[str, list[float]] = {}
        for task in (task for sweep in load.sweeps for task in sweep if task.rows):
            if op_of(task.op) in PER_EXPERT:
                rows.setdefault(task.op, []).append(task.rows)
        for op, each in rows.items():
            mean = round(max(1.0, statistics.fmean(each)), 2)
            points.setdefault(op, {}).setdefault(mean, []).append(load.slower)
    return {
        op: tuple((rows, statistics.fmean(each)) for rows, each in sorted(found.items()))
        for op, found in points.items()
    }
