"""What it costs that one lane waits for another: a thread must be woken."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Op


def hand_over_seconds(traces: Iterable[SweepTrace]) -> float:
    """Seconds in which nothing ran, before and after reads of pages, since one lane waited for
    another: beyond what usually lies between two tasks of one lane (a task's own cost, counted with
    tasks)."""
    spans = sorted(
        (span.start, span.end, task.lane, task.op is Op.READ_PAGE)
        for trace in traces
        for span in trace.spans
        for task in (trace.schedule.tasks[span.task],)
    )
    within: list[float] = []
    across: list[float] = []
    _, until, lane, reads = spans[0] if spans else (0.0, 0.0, "", False)
    for start, end, following, reads_next in spans[1:]:
        if start >= until and lane == following:
            within.append(start - until)
        elif start >= until and (reads or reads_next):
            across.append(start - until)
        if end >= until:  # the last one to end is the one that is waited for
            until, lane, reads = end, following, reads_next
    usual = median(within or [0.0])
    return sum(max(0.0, gap - usual) for gap in across)
