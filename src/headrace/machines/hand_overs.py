"""What it costs that one lane waits for another: a thread must be woken."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Op


def hand_over_seconds(traces: Iterable[SweepTrace]) -> float:
    """Seconds that sweeps in which nothing overlaps lost before and after reads of pages, where one
    lane waits for another, beyond what usually lies between two tasks of one lane (a task's own
    cost, counted with tasks)."""
    spans = sorted(
        (span.start, span.end, task.lane, task.op is Op.READ_PAGE)
        for trace in traces
        for span in trace.spans
        for task in (trace.schedule.tasks[span.task],)
    )
    within: list[float] = []
    across: list[float] = []
    for (_, end, lane, reads), (start, _, following, reads_next) in pairwise(spans):
        gap = max(0.0, start - end)
        if lane == following:
            within.append(gap)
        elif reads or reads_next:
            across.append(gap)
    usual = median(within or [0.0])
    return sum(max(0.0, gap - usual) for gap in across)
