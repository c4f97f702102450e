"""Measure this machine in a few seconds: roofs, and how close each operation comes to them.

What is timed is handed in (the planner imports neither torch nor the disk reader): the same
bodies and the same access pattern that the run will use.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from headrace.planner.stalls import settled
from headrace.planner.timed import (
    BETWEEN,
    EXPERTS,
    PAGE_READ_OP,
    PASSED,
    PER_EXPERT,
    ROW_READ_OP,
    Sweeps,
    Timed,
    name_of,
    op_of,
)
from headrace.schedule.work_vector import LANE, TOKENS
from headrace.specs.hardware import ATTENTION, CPU_FLOPS, DISK, DRAM, HOST, Curve, Hardware

Clock = Callable[[], float]

LEAST_CALLS = 5
"""Calls timed at least, however slow."""


@dataclass(frozen=True)
class Probes:
    """What can be timed on a machine.

    ``read_rate(depth)`` returns bytes/s of direct reads with ``depth`` requests in flight;
    ``sgemm()`` multiplies once at M = 512 and returns its FLOPs; ``sweep_memory()`` passes
    over memory well beyond the caches once and returns the bytes it touched. ``rehearse()``
    plays sweeps of several loads as a run would, and gives one load after the other. ``sample``,
    if given, samples once and returns the rows sampled.
    """

    read_rate: Callable[[int], float]
    sgemm: Callable[[], float]
    sweep_memory: Callable[[], float]
    rehearse: Callable[[], Iterable[Sweeps]] = tuple
    sample: Callable[[], float] | None = None


def measure(
    probes: Probes,
    clock: Clock,
    *,
    name: str = "this machine",
    capacity: Mapping[str, int] | None = None,
    depths: tuple[int, ...] = (1, 2, 4),
    seconds_each: float = 0.08,
    known: Hardware | None = None,
) -> Hardware:
    """Hardware with ``measured=True``. Each timing repeats for about ``seconds_each`` seconds,
    at least LEAST_CALLS times; a roof is a rate near the best, an operation's efficiency that of
    the rehearsal. ``known`` spares all but the rehearsal and one read, which says whether the disk
    still is what it was. Costs the reads, the rehearsal and a few times ``seconds_each``."""
    watch = _Watch(clock, seconds_each)
    if known is None:
        base = _roofs(probes, watch, name, depths)
    else:
        base = _checked(probes, known, max(depths[:2]))
    loads: list[Sweeps] = list(probes.rehearse())
    base = _raised(base, loads)
    loads, contention = settled(loads, base.roofs)
    call = _attention_call(loads, base.roofs)
    row_seconds, rows = _row_reads(loads)
    base = replace(
        base,
        capacity=dict(capacity or {}),
        task_seconds=_typical(BETWEEN, loads) or base.task_seconds,
        passed_seconds=_typical(name_of(PASSED, "on_demand"), loads) or base.passed_seconds,
        attention_seconds=call.task,
        attended_seconds=call.sequence,
        row_seconds=min(base.row_seconds, _least_per(HOST, loads) or math.inf),
        token_seconds=_least_per(TOKENS, loads) or base.token_seconds,
        row_read_seconds=row_seconds or base.row_read_seconds,
        contention=contention,
        noise=max(base.noise, watch.noise),
    )
    return replace(base, efficiency={**curves(_less_calls(loads, base), _rates(base)), **rows})


def near_best_rate(once: Callable[[], float], clock: Clock, seconds: float) -> float:
    """Units per second of ``once``, timed for about ``seconds`` as roofs are."""
    return _Watch(clock, seconds).rate(once)


def _rates(hardware: Hardware) -> dict[str, float]:
    """Units per second that shares are of: roofs, a request to the disk, host work in tokens."""
    host = {HOST: hardware.row_seconds, TOKENS: hardware.token_seconds}
    rates = {roof: 1 / each for roof, each in host.items() if each}
    return {**hardware.roofs, LANE: hardware.lane_rate, **rates}


def _least_per(unit: str, loads: Iterable[Sweeps]) -> float:
    """Seconds per unit of host work (a row drawn, a token turned into text), in the load where they
    are least; 0 where there is none."""
    tasks = [[t for sweep in sweeps for t in sweep if unit in t.amounts] for sweeps in loads]
    found = [[task.seconds / task.amounts[unit] for task in each] for each in tasks]
    return min((_mean(each) for each in found if each), default=0.0)


class _Call(NamedTuple):
    """What attention takes whatever it attends to: a task, and each sequence in it that decodes."""

    task: float = 0.0
    sequence: float = 0.0


class _Attended(NamedTuple):
    """A load of decodes: sequences, least seconds at the roofs, seconds of a task."""

    sequences: float
    least: float
    seconds: float


def _attention_call(loads: Iterable[Sweeps], roofs: Mapping[str, float]) -> _Call:
    """A task: where the line through the two smallest loads of decodes, which attend to as many
    tokens each, meets nothing. A sequence: where the line through those that attend to few tokens
    and to many does. Of the rehearsal's own schedule, for all."""
    found: list[_Attended] = []
    for sweeps in loads:
        tasks = [t for sweep in sweeps for t in sweep if t.op == ATTENTION and t.sequences]
        if tasks and tasks[0].amounts.keys() <= roofs.keys():
            least = max(amount / roofs[roof] for roof, amount in tasks[0].amounts.items())
            seconds = _mean([task.seconds for task in tasks])
            found.append(_Attended(tasks[0].sequences, least, seconds))
    if len(found) < 2:
        return _Call()
    found.sort()
    first, second = found[:2]
    task = _at_nothing([(first.least, first.seconds), (second.least, second.seconds)])
    each = [(a.least / a.sequences, (a.seconds - task) / a.sequences) for a in found[1:]]
    return _Call(task, _at_nothing(each))


def _at_nothing(points: Sequence[tuple[float, float]]) -> float:
    """Where the line from the points of the smaller half of x to those of the larger meets x = 0;
    at most _MOST_CALL of the first, and 0 where x hardly differs."""
    if max(points)[0] <= _APART * min(points)[0]:
        return 0.0
    middle = (min(points)[0] + max(points)[0]) / 2
    (small, first), (large, second) = (
        tuple(statistics.fmean(values) for values in zip(*half, strict=True))
        for half in ([p for p in points if p[0] <= middle], [p for p in points if p[0] > middle])
    )
    return max(0.0, min((first * large - second * small) / (large - small), _MOST_CALL * first))


def _less_calls(loads: Iterable[Sweeps], hardware: Hardware) -> list[Sweeps]:
    """``loads``, tasks of attention without what each takes whatever it attends to."""
    each, fixed = hardware.attended_seconds, hardware.attention_seconds

    def less(task: Timed) -> Timed:
        if op_of(task.op) != ATTENTION:
            return task
        rest = task.seconds - fixed - each * task.sequences
        return task._replace(seconds=max(rest, (1 - _MOST_CALL) * task.seconds))

    return [[[less(task) for task in sweep] for sweep in sweeps] for sweeps in loads]


_MOST_CALL = 0.9
"""Share of the least load's attention that may be the call's own."""

_APART = 1.5
"""Times as much that a larger load is at least."""


def _raised(base: Hardware, loads: Iterable[Sweeps]) -> Hardware:
    """``base`` with the roofs of arithmetic and of the disk, and what one request reaches of it, at
    least where tasks of the rehearsal were: they may have been measured while the machine was slow,
    and a share of one is 1 at most. (What comes from memory may have come from a cache.)"""
    rates = {**base.roofs, LANE: 0.0}
    for sweeps in loads:
        for roof, rate in _reached(sweeps, base.roofs).items():
            rates[roof] = max(rates[roof], rate)
    request = rates.pop(LANE)
    faster = rates[DISK] / base.roofs[DISK]
    lane_rate = min(max(base.lane_rate * faster, request), rates[DISK])
    return replace(base, roofs=rates, lane_rate=lane_rate)


def _reached(sweeps: Sweeps, roofs: Mapping[str, float]) -> dict[str, float]:
    """Rate at arithmetic of the op that reached the most, of those bound by it; and of reads of
    pages at the disk, and of each request."""
    sums: dict[tuple[str, str], list[float]] = {}
    for op, _, amounts, seconds, _ in (task for sweep in sweeps for task in sweep):
        known = {roof: amount / roofs[roof] for roof, amount in amounts.items() if roof in roofs}
        bound = max(known, key=lambda roof: known[roof], default="")
        reached = [bound] if bound == CPU_FLOPS else []
        if op_of(op) == PAGE_READ_OP:
            reached = [roof for roof in (DISK, LANE) if roof in amounts]
        for roof in reached:
            total = sums.setdefault((roof, op), [0.0, 0.0])
            total[0] += amounts[roof]
            total[1] += seconds
    found: dict[str, float] = {}
    for (bound, _), (amount, seconds) in sums.items():
        if seconds:
            found[bound] = max(found.get(bound, 0.0), amount / seconds)
    return found


def _typical(name: str, loads: Iterable[Sweeps]) -> float:
    """Median seconds of the tasks called ``name``, in the load where they are least; 0 without any.
    (At the seams of sweeps, of which a rehearsal of few layers has many, they wait for the caller;
    and passing over a task, for reads of others.)"""
    tasks = [[t for sweep in sweeps for t in sweep if t.op == name] for sweeps in loads]
    found = [statistics.median([task.seconds for task in each]) for each in tasks if each]
    return min(found, default=0.0)


def _row_reads(loads: Iterable[Sweeps]) -> tuple[float, dict[str, Curve]]:
    """Least seconds per row of a table that is read from disk, and how close to it reads of fewer
    rows come, by schedule. Of a few rows one waits for the disk's latency, and the others beside
    it. Behind pages that are being read they wait far longer; but where such a wait is not hidden
    by the disk's own work, the ring is full and no page is being read. So where it was seen what
    they take alone, this counts under ``stream``, too."""
    found: dict[str, dict[float, list[float]]] = {}
    for task in (task for sweeps in loads for sweep in sweeps for task in sweep):
        if op_of(task.op) == ROW_READ_OP and task.rows:
            by_rows = found.setdefault(task.op, {})
            by_rows.setdefault(task.rows, []).append(task.seconds / task.rows)
    if (alone := name_of(ROW_READ_OP, "one_by_one")) in found:
        found[ROW_READ_OP] = found.pop(alone)
    typical = {
        op: [(rows, _mean(each)) for rows, each in sorted(by_rows.items())]
        for op, by_rows in found.items()
    }
    least = min((seconds for each in typical.values() for _, seconds in each), default=0.0)
    curves = {
        op: tuple((rows, least / seconds) for rows, seconds in each if seconds)
        for op, each in typical.items()
    }
    return least, {op: curve for op, curve in curves.items() if curve}


STEADY = 0.25
"""How far a disk's rate may be from what it was before the rate of now counts instead."""


def _roofs(probes: Probes, watch: _Watch, name: str, depths: tuple[int, ...]) -> Hardware:
    """All that does not depend on the model."""
    rates = {depth: probes.read_rate(depth) for depth in depths}
    disk = max(rates.values())
    roofs = {
        CPU_FLOPS: watch.rate(probes.sgemm),
        DRAM: watch.rate(probes.sweep_memory),
        DISK: disk,
        HOST: 1.0,
    }
    stock = Hardware(name, roofs)
    return Hardware(
        name=name,
        roofs=roofs,
        lane_rate=min(rates[min(depths)], disk),
        row_seconds=stock.row_seconds if probes.sample is None else watch.seconds(probes.sample),
        task_seconds=stock.task_seconds,
        measured=True,
        noise=watch.noise,
    )


def _checked(probes: Probes, known: Hardware, depth: int) -> Hardware:
    """``known`` with the disk's rates scaled, if it is by now more than STEADY faster or slower:
    of all rates this is the one that changes."""
    before = min(known.roofs[DISK], depth * known.lane_rate)
    ratio = probes.read_rate(depth) / before
    if abs(ratio - 1) <= STEADY:
        return known
    roofs = {**known.roofs, DISK: known.roofs[DISK] * ratio}
    return replace(known, roofs=roofs, lane_rate=known.lane_rate * ratio)


def curves(loads: Iterable[Sweeps], roofs: Mapping[str, float]) -> dict[str, Curve]:
    """Op -> (rows, share of the roof): least seconds of an op's tasks over those they took, in all
    sweeps of a load; of an expert's tasks from _FEW rows on, in all loads that have such. Ops whose
    roofs are unknown here have no curve."""
    kept = list(loads)
    points: dict[str, dict[float, list[float]]] = {}
    for sweeps in kept:
        for op, (rows, share) in _points(sweeps, roofs).items():
            points.setdefault(op, {}).setdefault(round(rows, 2), []).append(share)
    found = {
        op: tuple((rows, statistics.fmean(shares)) for rows, shares in sorted(each.items()))
        for op, each in points.items()
    }
    for op, larger in _by_size(kept, roofs).items():
        found[op] = (*(point for point in found.get(op, ()) if point[0] < _FEW), *larger)
    known = next((found[op] for op in EXPERTS if op in found), None)
    return found if known is None else {**dict.fromkeys(EXPERTS, known), **found}


def _by_size(loads: Iterable[Sweeps], roofs: Mapping[str, float]) -> dict[str, Curve]:
    """Curves of ops with a task per expert, from _FEW rows on. Routing is uneven: some tasks of a
    sweep have many rows and others few, and their mean share is that of no number of rows. They
    are told apart by doublings, in all loads together. (A task of one row is not the same in all:
    where few experts are visited, threads are woken for each.)"""
    sizes: dict[int, list[Timed]] = {}
    for task in (task for sweeps in loads for sweep in sweeps for task in sweep):
        if op_of(task.op) in PER_EXPERT and task.rows >= _FEW:
            sizes.setdefault(int(math.log2(task.rows)), []).append(task)
    found: dict[str, list[tuple[float, float]]] = {}
    for _, tasks in sorted(sizes.items()):
        for op, point in _points([[task] for task in tasks], roofs).items():
            found.setdefault(op, []).append(point)
    return {op: tuple(points) for op, points in found.items()}


_FEW = 2  # rows from which on tasks of experts are told apart by their size, not by load


def _points(sweeps: Sweeps, roofs: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Op -> its mean rows (by what the tasks take) and share of the roof, of all ``sweeps``
    together: a run pays for the slow ones, too, if not for the disturbed ones (_MOST_SLOWED)."""
    found: dict[str, list[_Sum]] = {}
    for sweep in sweeps:
        sums: dict[str, list[float]] = {}
        for op, rows, amounts, seconds, _ in sweep:
            if rows and amounts and amounts.keys() <= roofs.keys():
                least = max(amount / roofs[roof] for roof, amount in amounts.items())
                total = sums.setdefault(op, [0.0, 0.0, 0.0])
                for i, part in enumerate((least, seconds, rows * least)):
                    total[i] += part
        for op, (least, seconds, weighted) in sums.items():
            if least and seconds:
                found.setdefault(op, []).append(_Sum(least, seconds, weighted))
    return {op: _point(each) for op, each in found.items()}


class _Sum(NamedTuple):
    """Of an op's tasks in a sweep: least seconds, seconds, and rows times least seconds."""

    least: float
    seconds: float
    weighted: float


def _point(sums: Sequence[_Sum]) -> tuple[float, float]:
    """Rows and share of all ``sums``."""
    slowness = _capped([each.seconds / each.least for each in sums])
    least = math.fsum(each.least for each in sums)
    seconds = math.fsum(slow * each.least for slow, each in zip(slowness, sums, strict=True))
    rows = math.fsum(each.weighted for each in sums) / least
    return max(1.0, rows), min(1.0, max(least / seconds, 1e-6))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(_capped(values))


def _capped(values: Sequence[float]) -> list[float]:
    """``values``, those beyond _MOST_SLOWED times their median no more than that."""
    most = _MOST_SLOWED * statistics.median(values)
    return [min(value, most) for value in values]


_MOST_SLOWED = 2.0
"""Times the median that what was timed counts at most: of a few moments a disturbed one would be
too large a part, and of a long run it is a small one."""


class _Watch:
    """Times callables, and remembers how unsteady they were.

    Of a roof the rate kept is near the best one seen: what disturbs a short measurement (another
    program on the core) makes it slower, never faster, and says little about a long run.
    """

    def __init__(self, clock: Clock, seconds_each: float) -> None:
        self._clock = clock
        self._seconds_each = seconds_each
        self._slowdowns: list[float] = []

    @property
    def noise(self) -> float:
        """How much slower than near-best the median call was, averaged: 0 on a quiet machine."""
        return statistics.fmean(self._slowdowns) - 1.0 if self._slowdowns else 0.0

    def rate(self, once: Callable[[], float]) -> float:
        """Units per second of ``once``, near the best, after one call to warm up."""
        rates = self._rates(once)
        near_best = rates[len(rates) * 4 // 5]
        self._slowdowns.append(near_best / statistics.median(rates))
        return near_best

    def seconds(self, once: Callable[[], float]) -> float:
        """Seconds per unit, the reciprocal of ``rate``."""
        return 1.0 / self.rate(once)

    def _rates(self, once: Callable[[], float]) -> list[float]:
        once()
        rates: list[float] = []
        started = self._clock()
        while len(rates) < LEAST_CALLS or self._clock() - started < self._seconds_each:
            before = self._clock()
            units = once()
            rates.append(units / max(self._clock() - before, 1e-9))
        return sorted(rates)
