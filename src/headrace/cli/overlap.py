"""How much of the overlap that was there to gain a run gained, from summaries of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Summary = Mapping[str, Any]
"""RunSummary.to_dict()."""

MOST_DRIFT = 0.10
"""Measurements stand while the disk's rate before and after differs by no more than this."""


def busy_seconds(summary: Summary, resource: str) -> float:
    """Busy seconds of ``cpu`` or ``disk``: of the lane of that name (for the disk, the time with
    any read in flight), else of all lanes whose names begin so."""
    lanes = summary["lanes"]
    names = [resource] if resource in lanes else [n for n in lanes if n.startswith(resource)]
    return sum(lanes[name]["busy_seconds"] for name in names)


def overlap_efficiency(streams: Sequence[Summary], one_by_ones: Sequence[Summary]) -> float | None:
    """(T_one_by_one - T_stream) / min(D, C), medians; D and C are the disk's and the CPU's busy
    seconds one by one, where nothing hides anything. None when there was nothing to overlap.
    """
    if not streams or not one_by_ones:
        return None
    disk = median(busy_seconds(s, "disk") for s in one_by_ones)
    cpu = median(busy_seconds(s, "cpu") for s in one_by_ones)
    gained = median_wall(one_by_ones) - median_wall(streams)
    return gained / min(disk, cpu) if min(disk, cpu) > 0 else None


def median_wall(summaries: Sequence[Summary]) -> float:
    """The median wall time."""
    return median(s["wall_seconds"] for s in summaries)


def median_run(summaries: Sequence[Summary]) -> Summary:
    """The run whose wall time is the (lower) median: its other figures belong together."""
    ordered = sorted(summaries, key=lambda s: s["wall_seconds"])
    return ordered[(len(ordered) - 1) // 2]


def drift(before: float, after: float) -> float:
    """Relative difference of two rates."""
    return abs(after - before) / max(before, after) if max(before, after) > 0 else 0.0


def throughput_report(
    streams: Sequence[Summary],
    one_by_ones: Sequence[Summary],
    rates: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """What ``bench throughput`` prints: the median run, beside it the run without overlap.

    ``rates`` holds the disk's rate (bytes/s) before and after each round.
    """
    report = dict(median_run(streams))
    report["repeats"] = len(streams)
    report["wall_seconds_all"] = [s["wall_seconds"] for s in streams]
    report["one_by_one_seconds"] = median_wall(one_by_ones) if one_by_ones else None
    report["one_by_one_seconds_all"] = [s["wall_seconds"] for s in one_by_ones]
    report["overlap_efficiency"] = overlap_efficiency(streams, one_by_ones)
    report["disk_rates"] = [list(pair) for pair in rates]
    report["disk_drift"] = max((drift(*pair) for pair in rates), default=None)
    if one_by_ones:
        report["disk_busy_seconds"] = median(busy_seconds(s, "disk") for s in one_by_ones)
        report["cpu_busy_seconds"] = median(busy_seconds(s, "cpu") for s in one_by_ones)
    return report


def steady_rounds(
    play: Callable[[], tuple[Summary, Summary | None]],
    disk_rate: Callable[[], float] | None,
    rounds: int,
    most_repeats: int = 3,
) -> tuple[list[Summary], list[Summary], list[tuple[float, float]]]:
    """``rounds`` pairs of runs; a round during which the disk's rate drifted is played again,
    ``most_repeats`` times in all at most, and then taken as it is."""
    streams: list[Summary] = []
    one_by_ones: list[Summary] = []
    rates: list[tuple[float, float]] = []
    spare = most_repeats
    while len(streams) < rounds:
        before = disk_rate() if disk_rate else 0.0
        stream, one_by_one = play()
        after = disk_rate() if disk_rate else 0.0
        if drift(before, after) > MOST_DRIFT and spare:
            spare -= 1
            continue
        streams.append(stream)
        if one_by_one is not None:
            one_by_ones.append(one_by_one)
        if disk_rate:
            rates.append((before, after))
    return streams, one_by_ones, rates
