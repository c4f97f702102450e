"""Measure this machine in a few seconds: roofs, and how close each operation comes to them.

What is timed is handed in (the planner imports neither torch nor the disk reader): the same
bodies and the same access pattern that the run will use.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Curve, Hardware

Clock = Callable[[], float]


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
    by operation name. ``row_seconds``, if given, samples once and returns the rows sampled.
    """

    read_rate: Callable[[int], float]
    sgemm: Callable[[], float]
    sweep_memory: Callable[[], float]
    ops: Mapping[str, OpProbe] = field(default_factory=dict)
    sample: Callable[[], int] | None = None


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
    at least three times, and takes the median. Costs the reads plus about
    ``seconds_each`` x (2 + operations x rows)."""
    rates = {depth: probes.read_rate(depth) for depth in depths}
    disk = max(rates.values())
    roofs = {
        CPU_FLOPS: _rate(probes.sgemm, clock, seconds_each),
        DRAM: _rate(probes.sweep_memory, clock, seconds_each),
        DISK: disk,
        HOST: 1.0,
    }
    stock = Hardware(name, roofs)
    return Hardware(
        name=name,
        roofs=roofs,
        capacity=dict(capacity or {}),
        lane_rate=min(rates[min(depths)], disk),
        efficiency={
            op: _curve(probe, roofs, clock, seconds_each) for op, probe in probes.ops.items()
        },
        row_seconds=(
            stock.row_seconds
            if probes.sample is None
            else 1.0 / _rate(probes.sample, clock, seconds_each)
        ),
        measured=True,
    )


def _curve(probe: OpProbe, roofs: Mapping[str, float], clock: Clock, seconds_each: float) -> Curve:
    """(rows, share of the roof) points; a share above 1 means the roof was measured low."""
    points = []
    for rows in probe.rows:
        least = max(amount / roofs[roof] for roof, amount in probe.amounts(rows).items())

        def once(rows: int = rows) -> float:
            probe.run(rows)
            return 1.0

        took = 1.0 / _rate(once, clock, seconds_each)
        points.append((float(rows), min(1.0, max(least / took, 1e-6))))
    return tuple(points)


def _rate(once: Callable[[], float], clock: Clock, seconds_each: float) -> float:
    """Median units per second of ``once``, after one call to warm up."""
    once()
    rates: list[float] = []
    started = clock()
    while len(rates) < 3 or clock() - started < seconds_each:
        before = clock()
        units = once()
        rates.append(units / max(clock() - before, 1e-9))
    return statistics.median(rates)
