"""What it costs that one lane waits for another: a thread must be woken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median

from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Task


def hand_over_seconds(traces: Iterable[SweepTrace], counts: Callable[[Task], bool]) -> float:
    """Seconds in which nothing ran, before and after tasks that ``counts`` names, since one lane
    waited for another: beyond what usually lies between two tasks of one lane (a task's own cost,
    counted with tasks), and beyond what passing over tasks took on the lane that was waited for."""
    spans = sorted(
        (span.start, span.end, task.lane, counts(task))
        for trace in traces
        for span in trace.spans
        for task in (trace.schedule.tasks[span.task],)
    )
    within: list[float] = []
    across: list[tuple[float, int]] = []
    passing: list[float] = []
    passed: Counter[str] = Counter()  # since nothing ran, by lane
    last: dict[str, float] = {}
    until, lane, counted = 0.0, "", False  # of the task that ended last
    for start, end, following, counts_next in spans:
        if start == end:
            if start >= until:
                passing += [start - last[following]] if passed[following] else []
                passed[following] += 1
                last[following] = start
            continue
        if start >= until and lane == following and not passed[following]:
            within.append(start - until)
        elif start >= until and lane not in ("", following) and (counted or counts_next):
            across.append((start - until, passed[following]))
        if end >= until:  # the last one to end is the one that is waited for
            until, lane, counted = end, following, counts_next
            passed.clear()
    usual, each = median(within or [0.0]), median(passing or [0.0])
    return sum(max(0.0, gap - usual - count * each) for gap, count in across)
