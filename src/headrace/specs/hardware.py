"""What a machine can do: roofs (rates), capacities of its tiers, and how close to the roofs each
operation gets. Measured by ``calibrate`` or read from the registry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CPU_FLOPS = "cpu_flops"
DRAM = "dram"
DISK = "disk"
HOST = "host"

Curve = tuple[tuple[float, float], ...]
"""(rows, efficiency) points, ascending in rows."""


@dataclass(frozen=True)
class Hardware:
    """Roofs in units per second: FLOP/s, bytes/s; the ``host`` roof is in seconds per second.

    ``lane_rate`` caps what one disk request in flight reaches (bytes/s); ``disk`` is the roof
    all of them share. ``efficiency`` maps an op name to a curve over rows, each value <= 1.
    ``row_seconds`` is host work (sampling, detokenising) per row and ``task_seconds`` the
    machine's own cost per task. ``measured`` tells a measurement from a stock figure; ``noise``
    is how much slower than near-best a typical timing was while measuring (0: quiet machine).
    """

    name: str
    roofs: Mapping[str, float]
    capacity: Mapping[str, int] = field(default_factory=dict)
    lane_rate: float = math.inf
    efficiency: Mapping[str, Curve] = field(default_factory=dict)
    row_seconds: float = 50e-6
    task_seconds: float = 20e-6
    measured: bool = False
    noise: float = 0.0

    def efficiency_of(self, op: str, rows: float) -> float:
        """Share of the roof that ``op`` reaches with ``rows`` rows, interpolated in log(rows)."""
        curve = self.efficiency.get(op)
        return 1.0 if not curve else _interpolate(curve, max(rows, 1.0))


def _interpolate(curve: Curve, rows: float) -> float:
    if rows <= curve[0][0]:
        return curve[0][1]
    for (r0, e0), (r1, e1) in itertools.pairwise(curve):
        if rows <= r1:
            share = (math.log(rows) - math.log(r0)) / (math.log(r1) - math.log(r0))
            return float(e0 * (e1 / e0) ** share)
    return curve[-1][1]
