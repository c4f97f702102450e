"""Measure this machine in a few seconds: roofs, and how close each operation comes to them.

What is timed is handed in (the planner imports neither torch nor the disk reader): the same
bodies and the same access pattern that the run will use.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Curve, Hardware

Clock = Callable[[], float]

LEAST_CALLS = 5
"""Calls timed at least, however slow."""


@dataclass(frozen=True)
class OpProbe:
    """An operation to time. ``run(rows)`` executes it once; ``amounts(rows)`` is its work by
    roof, exactly as the work model counts it, so that prediction and calibration agree."""

    run: Callable[[int], object]
    amounts: Callable[[int], Mapping[str, float]]
    rows: tuple[int, ...] = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Probes:
    """What can be timed on a machine.

    ``read_rate(depth)`` returns bytes/s of direct reads with ``depth`` requests in flight;
    ``sgemm()`` multiplies once at M = 512 and returns its FLOPs; ``sweep_memory()`` passes
    over memory well beyond the caches once and returns the bytes it touched. ``ops`` is keyed
    by operation name. ``sample``, if given, samples once and returns the rows sampled.
    ``beside`` is what runs while operations are timed: reads, where the run will read.
    """

    read_rate: Callable[[int], float]
    sgemm: Callable[[], float]
    sweep_memory: Callable[[], float]
    ops: Mapping[str, OpProbe] = field(default_factory=dict)
    sample: Callable[[], int] | None = None
    beside: Callable[[], AbstractContextManager[object]] = nullcontext


def measure(
    probes: Probes,
    clock: Clock,
    *,
    name: str = "this machine",
    capacity: Mapping[str, int] | None = None,
    depths: tuple[int, ...] = (1, 2, 4),
    seconds_each: float = 0.08,
) -> Hardware:
    """Hardware with ``measured=True``. Each timing repeats for about ``seconds_each`` seconds,
    at least LEAST_CALLS times; a roof is a rate near the best, an operation's efficiency the
    median beside what ``probes.beside`` keeps running. Costs the reads plus about
    ``seconds_each`` x (2 + operations x rows)."""
    rates = {depth: probes.read_rate(depth) for depth in depths}
    disk = max(rates.values())
    watch = _Watch(clock, seconds_each)
    roofs = {
        CPU_FLOPS: watch.rate(probes.sgemm),
        DRAM: watch.rate(probes.sweep_memory),
        DISK: disk,
        HOST: 1.0,
    }
    with probes.beside():
        efficiency = {op: _curve(probe, roofs, watch) for op, probe in probes.ops.items()}
    stock = Hardware(name, roofs)
    return Hardware(
        name=name,
        roofs=roofs,
        capacity=dict(capacity or {}),
        lane_rate=min(rates[min(depths)], disk),
        efficiency=efficiency,
        row_seconds=(
            stock.row_seconds if probes.sample is None else 1.0 / watch.rate(probes.sample)
        ),
        measured=True,
        noise=watch.noise,
    )


def _curve(probe: OpProbe, roofs: Mapping[str, float], watch: _Watch) -> Curve:
    """(rows, share of the roof) points; a share above 1 means the roof was measured low."""
    points = []
    for rows in probe.rows:
        least = max(amount / roofs[roof] for roof, amount in probe.amounts(rows).items())

        def once(rows: int = rows) -> float:
            probe.run(rows)
            return 1.0

        took = 1.0 / watch.typical(once)
        points.append((float(rows), min(1.0, max(least / took, 1e-6))))
    return tuple(points)


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

    def typical(self, once: Callable[[], float]) -> float:
        """The median: of operations that are disturbed in the run just as they are here."""
        return statistics.median(self._rates(once))

    def _rates(self, once: Callable[[], float]) -> list[float]:
        once()
        rates: list[float] = []
        started = self._clock()
        while len(rates) < LEAST_CALLS or self._clock() - started < self._seconds_each:
            before = self._clock()
            units = once()
            rates.append(units / max(self._clock() - before, 1e-9))
        return sorted(rates)
