"""Aggregates, comparison and export of traces."""

from __future__ import annotations

import json

import pytest

from headrace.machines.trace import (
    Busy,
    DiffRow,
    RunTotals,
    Span,
    SweepTrace,
    chrome_trace,
    diff,
    utilisation,
)
from headrace.schedule.task import Buffer, Op, Schedule, Task

SCHEDULE = Schedule(
    "test",
    (
        Task(Op.READ_PAGE, "disk0", (), (Buffer("slot"),), layer=0, page=3, expert=2),
        Task(Op.EXPERT, "cpu", (Buffer("slot"),), (), layer=0, page=3, expert=2),
    ),
    {},
)
FIRST = SweepTrace(0, SCHEDULE, (Span(0, 10.0, 12.0), Span(1, 12.0, 13.0)))
SECOND = SweepTrace(1, SCHEDULE, (Span(0, 12.0, 14.0), Span(1, 14.0, 14.5)))


def test_totals_add_up_over_sweeps() -> None:
    totals = RunTotals.of([FIRST, SECOND])
    assert totals.lanes == {"disk0": Busy(4.0, 2), "cpu": Busy(1.5, 2)}
    assert totals.ops == {"read_page": Busy(4.0, 2), "expert": Busy(1.5, 2)}
    assert (totals.sweeps, totals.tasks, totals.wall_seconds) == (2, 4, 4.5)


def test_utilisation_is_busy_over_wall() -> None:
    assert utilisation([FIRST, SECOND]) == pytest.approx({"disk0": 4 / 4.5, "cpu": 1.5 / 4.5})
    assert utilisation([]) == {}
    assert RunTotals().wall_seconds == 0.0


def test_diff_sets_predicted_beside_measured() -> None:
    rows = diff(RunTotals.of([FIRST]), RunTotals.of([FIRST, SECOND]))
    assert rows[0] == DiffRow("run", "wall", 3.0, 4.5)
    assert DiffRow("lane", "disk0", 2.0, 4.0) in rows
    assert DiffRow("op", "expert", 1.0, 1.5) in rows
    assert rows[0].ratio == 1.5
    assert diff(RunTotals(), RunTotals.of([FIRST]))[1].ratio is None


def test_chrome_trace_shows_planned_lanes_beside_measured_ones() -> None:
    data = json.loads(json.dumps(chrome_trace([FIRST, SECOND], predicted=[FIRST])))
    names = [e["args"]["name"] for e in data["traceEvents"] if e["ph"] == "M"]
    lanes = ["disk0", "cpu", "bubbles of disk"]
    assert names == ["planned", *lanes, "measured", *lanes]
    events = [e for e in data["traceEvents"] if e["ph"] == "X" and e["pid"] == 2]
    spans = [e for e in events if e["cat"] != "bubbles"]
    assert [(e["tid"], e["ts"], e["dur"]) for e in spans] == [
        (1, 0.0, 2e6),
        (2, 2e6, 1e6),
        (1, 2e6, 2e6),
        (2, 4e6, 0.5e6),
    ]
    assert spans[1]["name"] == "expert L0 E2 p3"
    assert {e["args"]["sweep"] for e in spans} == {0, 1}


def test_a_trace_without_a_plan_has_one_process() -> None:
    assert {e["pid"] for e in chrome_trace([FIRST])["traceEvents"]} == {2}


def test_an_empty_trace_takes_no_time() -> None:
    empty = SweepTrace(0, Schedule("none", (), {}), ())
    assert (empty.start, empty.end) == (0.0, 0.0)
