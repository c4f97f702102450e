"""Bubbles: time in which what bounds a run has nothing to do.

Lanes that share a resource (requests in flight to one disk, both queues of a link) are busy
together: a bubble is time in which none of them works.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from headrace.schedule.lanes import H2D, PACKETS

Interval = tuple[float, float]

LINK = "link"


class Bubbles(NamedTuple):
    """The busiest resource, its lanes, and the gaps in which it was idle, in order. ``share`` is
    their part of the time from the first start to the last end of any lane."""

    resource: str
    lanes: tuple[str, ...]
    gaps: tuple[Interval, ...]
    share: float


def resource_of(lane: str) -> str:
    """``disk`` for ``disk0``, ``link`` for both queues of uploads, else the lane's own name."""
    return LINK if lane in (H2D, PACKETS) else lane.rstrip("0123456789") or lane


def bubbles(lanes: Mapping[str, Sequence[Interval]]) -> Bubbles | None:
    """Where the busiest resource of a trace stood idle; None when nothing ran.

    ``lanes`` holds (start, end) of the tasks of each lane, in any order."""
    ran = {name: spans for name, spans in lanes.items() if any(e > s for s, e in spans)}
    if not ran:
        return None
    start = min(s for spans in ran.values() for s, _ in spans)
    end = max(e for spans in ran.values() for _, e in spans)
    shared: dict[str, list[str]] = {}
    for lane in ran:
        shared.setdefault(resource_of(lane), []).append(lane)
    idle = {
        resource: _gaps((span for lane in own for span in ran[lane]), start, end)
        for resource, own in shared.items()
    }
    best = min(idle, key=lambda resource: _length(idle[resource]))
    share = _length(idle[best]) / (end - start)
    return Bubbles(best, tuple(shared[best]), tuple(idle[best]), share)


def _gaps(spans: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """What ``spans`` leave uncovered between ``start`` and ``end``."""
    gaps, reached = [], start
    for s, e in sorted(spans):
        if s > reached:
            gaps.append((reached, s))
        reached = max(reached, e)
    return [*gaps, (reached, end)] if end > reached else gaps


def _length(intervals: Iterable[Interval]) -> float:
    return sum(e - s for s, e in intervals)
