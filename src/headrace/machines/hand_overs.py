"""What it costs that one lane waits for another: a thread must be woken."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from headrace.machines.trace import SweepTrace


def hand_over_seconds(traces: Iterable[SweepTrace]) -> float:
    """Seconds that sweeps in which nothing overlaps lost between tasks of different lanes, beyond
    what usually lies between two tasks of one lane (a task's own cost, counted with tasks)."""
    spans = sorted(
        (span.start, span.end, trace.schedule.tasks[span.task].lane)
        for trace in traces
        for span in trace.spans
    )
    within: list[float] = []
    across: list[float] = []
    for (_, end, lane), (start, _, following) in pairwise(spans):
        (within if lane == following else across).append(max(0.0, start - end))
    usual = median(within or [0.0])
    return sum(max(0.0, gap - usual) for gap in across)
