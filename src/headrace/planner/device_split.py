"""How experts divide between the accelerator, the link and the processor: a linear program.

Shares of all experts' bytes: x resident on the device, c multiplied by the processor, the others,
s = 1 - x - c, stream; d of them come from disk. The sweep takes as long as its busiest resource:

    minimise T   subject to   T >= link + s W / B_link,      T >= gpu,     T >= disk + d W / B_disk,
    T >= cpu + c cpu_1,       T >= dram + s dram_s + c dram_c,
    x W + ring s W <= device room,        (s - d + c) W <= host room,     0 <= d <= s, x, c

(``ring`` is 2 / L: its slots hold the streamed pages of two of L layers). The more is resident,
the less streams and the less comes from disk, so for a given c both follow; T is then convex and
piecewise linear in c, with its minimum where two lines cross. A test compares it with a solver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple


@dataclass(frozen=True)
class Terms:
    """The program's numbers: bytes of experts and of room for them, seconds of a sweep that do
    not depend on the split, and seconds at a share of 1 (``whole_...``)."""

    weights: float
    ring: float
    device_room: float
    host_room: float
    link: float
    whole_link: float
    cpu: float
    whole_cpu: float
    gpu: float = 0.0
    disk: float = 0.0
    whole_disk: float = 0.0
    dram: float = 0.0
    whole_dram_streamed: float = 0.0
    whole_dram_cpu: float = 0.0


class Split(NamedTuple):
    """Shares of the experts' bytes, and the seconds of the busiest resource."""

    resident: float
    cpu: float
    disk: float
    seconds: float

    @property
    def streamed(self) -> float:
        """What crosses the link in every sweep."""
        return max(0.0, 1.0 - self.resident - self.cpu)


def best_split(terms: Terms, most_cpu: float = 1.0) -> Split | None:
    """The split with the shortest sweep and, of those, the least for the processor; None if no
    split fits. ``most_cpu`` 0: the processor multiplies none."""
    low, high = _least_cpu(terms), min(most_cpu, 1.0, terms.host_room / terms.weights)
    if low > high + _ROUNDING or terms.host_room < 0:
        return None
    found = (split_at(terms, c) for c in _crossings(terms, low, max(low, high)))
    return min(found, key=lambda split: (round(split.seconds, 12), split.cpu))


_ROUNDING = 1e-12  # by which sums of shares may miss


def split_at(terms: Terms, cpu: float) -> Split:
    """The best split with a share ``cpu`` for the processor, which must fit."""
    room = terms.device_room / terms.weights
    ring = min(1.0, terms.ring)
    resident = 1.0 - cpu
    if resident > room + _ROUNDING:  # some stream, through a ring
        slope = 1.0 - ring
        resident = min(resident, max(0.0, room - ring * (1.0 - cpu)) / slope) if slope > 0 else 0.0
    streamed = 1.0 - resident - cpu
    disk = min(streamed, max(0.0, streamed + cpu - terms.host_room / terms.weights))
    seconds = max(
        terms.link + streamed * terms.whole_link,
        terms.cpu + cpu * terms.whole_cpu,
        terms.gpu,
        terms.disk + disk * terms.whole_disk,
        terms.dram + streamed * terms.whole_dram_streamed + cpu * terms.whole_dram_cpu,
    )
    return Split(resident, cpu, disk, seconds)


def _least_cpu(terms: Terms) -> float:
    """Below it, the ring of what streams does not fit the device even with nothing resident."""
    room = terms.device_room / terms.weights
    if room < 0:
        return 2.0
    return max(0.0, 1.0 - room / min(1.0, terms.ring))


def _crossings(terms: Terms, low: float, high: float) -> Iterator[float]:
    """Shares at which the minimum can be: the ends, and wherever two lines cross. Lines are found
    on each side of the points where the split changes its form."""
    room, ring = terms.device_room / terms.weights, min(1.0, terms.ring)
    corners = {low, high, 1.0 - room}
    if ring < 1.0:  # where nothing comes from disk any more
        host = terms.host_room / terms.weights
        corners.add(1.0 - (room - (1.0 - ring) * (1.0 - host)) / ring)
    inside = sorted(c for c in corners if low <= c <= high)
    yield from inside
    for a, b in pairwise(inside):
        lines = list(zip(_resources(terms, a), _resources(terms, b), strict=True))
        for (a1, b1), (a2, b2) in combinations(lines, 2):
            closing = (b2 - b1) - (a2 - a1)
            share = (a1 - a2) / closing if closing else -1.0
            if 0.0 < share < 1.0:
                yield a + share * (b - a)


def _resources(terms: Terms, cpu: float) -> tuple[float, ...]:
    split = split_at(terms, cpu)
    s, d = split.streamed, split.disk
    return (
        terms.link + s * terms.whole_link,
        terms.cpu + cpu * terms.whole_cpu,
        terms.gpu,
        terms.disk + d * terms.whole_disk,
        terms.dram + s * terms.whole_dram_streamed + cpu * terms.whole_dram_cpu,
    )
