"""Gaps between lanes, where nothing overlaps."""

from __future__ import annotations

import pytest

from headrace.machines.hand_overs import hand_over_seconds
from headrace.machines.trace import Span, SweepTrace
from headrace.schedule.task import Op, Schedule, Task

TASKS = (
    (Op.READ_PAGE, "disk0"), (Op.EXPERT, "cpu"), (Op.EXPERT, "cpu"), (Op.READ_PAGE, "disk1"),
)  # fmt: skip
SCHEDULE = Schedule("test", tuple(Task(op, lane, (), ()) for op, lane in TASKS), {})


def trace(*starts: float) -> SweepTrace:
    """Tasks of a second each."""
    return SweepTrace(0, SCHEDULE, tuple(Span(i, s, s + 1.0) for i, s in enumerate(starts)))


def overs(traces: list[SweepTrace]) -> float:
    """Around reads of pages."""
    return hand_over_seconds(traces, lambda task: task.op is Op.READ_PAGE)


def test_a_lane_that_is_woken_is_late_by_more_than_one_that_goes_on() -> None:
    assert overs([trace(0.0, 1.5, 2.6, 4.0)]) == pytest.approx(0.5 + 0.4 - 2 * 0.1)


def test_sweeps_hand_over_to_each_other() -> None:
    first, second = trace(0.0, 1.0, 2.0, 3.0), trace(4.25, 5.25, 6.25, 7.25)
    assert overs([second, first]) == pytest.approx(0.25), "disk1 to disk0"


def test_what_waits_for_no_page_is_not_counted_with_reads() -> None:
    tasks = (Task(Op.BIND, "host", (), ()), Task(Op.EMBED, "cpu", (), ()))
    spans = (Span(0, 0.0, 1.0), Span(1, 3.0, 4.0))
    assert overs([SweepTrace(0, Schedule("test", tasks, {}), spans)]) == 0.0


def test_what_overlaps_or_is_alone_hands_nothing_over() -> None:
    assert overs([trace(0.0, 0.5, 1.5, 2.0)]) == 0.0
    assert overs([]) == 0.0


def test_what_goes_on_beside_a_read_is_no_gap() -> None:
    tasks = tuple(
        Task(op, lane, (), ())
        for op, lane in (
            (Op.READ_PAGE, "disk0"),
            (Op.EXPERT, "cpu"),
            (Op.EXPERT, "cpu"),
            (Op.EXPERT, "cpu"),
        )
    )
    spans = (Span(0, 0.0, 10.0), Span(1, 1.0, 2.0), Span(2, 3.0, 4.0), Span(3, 10.5, 11.0))
    sweep = SweepTrace(0, Schedule("test", tasks, {}), spans)
    assert overs([sweep]) == pytest.approx(0.5), "the read is what was waited for"


def test_what_was_passed_over_meanwhile_is_no_hand_over() -> None:
    tasks = [(Op.ROUTER, "cpu"), *[(Op.READ_PAGE, "disk0")] * 4, *[(Op.EXPERT, "cpu")] * 2]
    passed = [(t, t) for t in (1.25, 1.5, 1.75)]
    times = [(0.0, 1.0), *passed, (2.5, 4.0), (5.0, 5.0), (5.5, 6.0)]
    spans = tuple(Span(i, start, end) for i, (start, end) in enumerate(times))
    schedule = Schedule("test", tuple(Task(op, lane, (), ()) for op, lane in tasks), {})
    found = overs([SweepTrace(0, schedule, spans)])
    read, expert = 2.5 - 1.0 - 3 * 0.25, 5.5 - 4.0 - 0.25
    assert found == pytest.approx(read + expert), "a quarter for each"
