"""What a machine can do: roofs (rates), capacities of its tiers, and how close to the roofs each
operation gets. Measured by ``calibrate`` or read from the registry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

CPU_FLOPS = "cpu_flops"
DRAM = "dram"
DISK = "disk"
HOST = "host"
GPU_FLOPS = "gpu_flops"
HBM = "hbm"
H2D = "h2d"
D2H = "d2h"
STAGE = "stage"

OF_DEVICE = (GPU_FLOPS, HBM, H2D, D2H, STAGE)
"""Roofs that each accelerator has for itself; a thread per accelerator stages its pages."""

ATTENTION = "attn"
"""The op whose rows say how often a token that was read is used, not how much there is to do."""

Curve = tuple[tuple[float, float], ...]
"""(rows, efficiency) points, ascending in rows."""


class Level(NamedTuple):
    """A memory and the processor beside it (``flops`` 0: none). ``link`` is the rate at which
    data comes in from the next larger, slower level, in bytes/s; 0 for the largest."""

    name: str
    flops: float
    bandwidth: float
    capacity: int
    link: float


@dataclass(frozen=True)
class Hardware:
    """Roofs in units per second: FLOP/s, bytes/s; the ``host`` roof is in seconds per second.

    A machine with an accelerator has the roofs ``gpu_flops``, ``hbm`` (its memory), ``h2d`` and
    ``d2h`` (pinned copies over the link, each way) as well. ``stage``, if given, caps what copies
    from pageable into pinned memory reach, which one thread makes. ``capacity`` is bytes per tier:
    ``host``, ``device``, ``disk``, and ``pinned`` where less than all of the host's may be.

    ``devices`` equal accelerators in one host work as one (tensor parallelism): each has a share of
    every weight and of the KV heads, and its own link; the host's processor and memory are shared.
    Roofs and capacity of accelerators, ``stage`` too, are of all of them together.

    ``lane_rate`` caps what one disk request in flight reaches (bytes/s); ``disk`` is the roof
    all of them share. ``efficiency`` maps an op name to a curve over rows, each value <= 1;
    under ``gpu.`` and the op's name stand those of the accelerator. ``row_seconds`` is host work
    of drawing one token, ``token_seconds`` of turning it into text (where it was measured, with
    the choice of the next batch), ``sequence_seconds`` of placing one sequence in a batch,
    ``row_read_seconds`` of fetching one row of a table from disk, ``task_seconds`` the machine's
    own cost per task, ``passed_seconds`` that of one with nothing to do, which it passes over, and
    ``attention_seconds`` what a task of attention on the processor takes on top, however little it
    attends to; each sequence in it that decodes takes ``attended_seconds`` more.
    ``contention`` is how much longer reads and arithmetic that keeps all cores busy take while both
    go on, as a share of the time each takes alone (where a host copies pages in its guest's time).
    ``measured`` tells a measurement from a stock figure; ``noise`` is how much slower than
    near-best a typical timing was while measuring (0: quiet machine). ``bias`` is what earlier runs
    here let expect of ln(measured / played), and ``error`` half its 90 % interval; 0 and None where
    nobody looked.
    """

    name: str
    roofs: Mapping[str, float]
    capacity: Mapping[str, int] = field(default_factory=dict)
    lane_rate: float = math.inf
    efficiency: Mapping[str, Curve] = field(default_factory=dict)
    row_seconds: float = 50e-6
    token_seconds: float = 0.0
    sequence_seconds: float = 0.0
    row_read_seconds: float = 0.0
    task_seconds: float = 20e-6
    passed_seconds: float = 10e-6
    attention_seconds: float = 0.0
    attended_seconds: float = 0.0
    contention: float = 0.0
    devices: int = 1
    measured: bool = False
    noise: float = 0.0
    bias: float = 0.0
    error: float | None = None

    def efficiency_of(self, op: str, rows: float) -> float:
        """Share of the roof that ``op`` reaches with ``rows`` rows, interpolated in log(rows)."""
        curve = self.efficiency.get(op)
        return 1.0 if not curve else share_at(curve, max(rows, 1.0))

    def fixed_seconds_of(self, op: str, chance: float = 1.0) -> float:
        """What a task of ``op`` takes whatever it has to do: the machine's part, and its own. With
        ``chance`` there is something to do; else it is passed over."""
        done = self.task_seconds + self.own_seconds_of(op)
        return chance * done + (1 - chance) * self.passed_seconds

    def own_seconds_of(self, op: str) -> float:
        """The part that is the task's own, not the machine's."""
        return self.attention_seconds if op == ATTENTION else 0.0

    @property
    def ideal(self) -> Hardware:
        """The same roofs where every task reaches them and costs nothing else."""
        free = replace(self, task_seconds=0.0, passed_seconds=0.0)
        free = replace(free, attention_seconds=0.0, attended_seconds=0.0, contention=0.0)
        return replace(free, efficiency={})

    @property
    def has_device(self) -> bool:
        """Whether there is an accelerator."""
        return GPU_FLOPS in self.roofs

    def times(self, devices: int) -> Hardware:
        """The same host with ``devices`` times as many accelerators, each with its own link."""
        roofs = {r: v * (devices if r in OF_DEVICE else 1) for r, v in self.roofs.items()}
        capacity = {t: c * (devices if t == "device" else 1) for t, c in self.capacity.items()}
        return replace(self, roofs=roofs, capacity=capacity, devices=self.devices * devices)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Disk, host and device (those there are), largest and slowest first."""
        found = []
        for name, flops, memory, link in _LEVELS:
            if memory in self.roofs:
                p, b, incoming = (self.roofs.get(roof, 0.0) for roof in (flops, memory, link))
                found.append(Level(name, p, b, self.capacity.get(name, 0), incoming))
        return (found[0]._replace(link=0.0), *found[1:]) if found else ()


_LEVELS = (
    ("disk", "", DISK, ""),
    ("host", CPU_FLOPS, DRAM, DISK),
    ("device", GPU_FLOPS, HBM, H2D),
)
"""Name of a level, and its roofs: arithmetic, memory, link into it."""


def share_at(curve: Curve, rows: float) -> float:
    """The share of a curve with points at ``rows`` (1 or more), interpolated in log(rows)."""
    if rows <= curve[0][0]:
        return curve[0][1]
    for (r0, e0), (r1, e1) in itertools.pairwise(curve):
        if rows <= r1:
            share = (math.log(rows) - math.log(r0)) / (math.log(r1) - math.log(r0))
            return float(e0 * (e1 / e0) ** share)
    return curve[-1][1]
