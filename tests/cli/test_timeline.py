"""The timeline: lanes from traces, the picture well-formed and to scale."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from headrace.cli.timeline import (
    COLOURS,
    KINDS,
    Bar,
    busy_share,
    join_thin,
    kind_of,
    lanes_of_chrome,
    timeline_svg,
    window,
)
from headrace.cli.trace_files import draw_trace, middle
from headrace.machines.trace import Span, SweepTrace, chrome_trace
from headrace.schedule.task import Buffer, Op, Schedule, Task

SVG = "{http://www.w3.org/2000/svg}"

SCHEDULE = Schedule(
    "stream",
    (
        Task(Op.READ_PAGE, "disk0", (), (Buffer("slot", 0),), layer=0, page=1),
        Task(Op.EXPERT, "cpu", (Buffer("slot", 0),), (), layer=0, expert=3),
        Task(Op.COMMIT, "host", (), (Buffer("requests"),)),
    ),
    {},
)


def trace(start: float, index: int = 0) -> SweepTrace:
    spans = (
        Span(0, start, start + 2),
        Span(1, start + 2, start + 3),
        Span(2, start + 3, start + 3.5),
    )
    return SweepTrace(index, SCHEDULE, spans)


def lanes_of(traces):
    return lanes_of_chrome(chrome_trace(traces))[1]


def test_every_op_has_a_colour():
    for op in Op:
        assert sum(op in ops for ops in KINDS.values()) == 1
        assert kind_of(op) in COLOURS


def test_lanes_start_at_zero_and_hold_what_ran():
    lanes = lanes_of([trace(100.0)])
    assert lanes["disk0"] == [Bar(0.0, 2.0, "read", "read_page L0 p1")]
    assert lanes["cpu"][0].start == 2.0


def test_planned_and_measured_lanes_are_kept_apart():
    planned, measured = lanes_of_chrome(chrome_trace([trace(5.0)], [trace(0.0)]))
    assert measured == lanes_of([trace(5.0)])
    assert planned["cpu"][0].end == pytest.approx(3.0)


def test_picture_is_well_formed_and_shows_both_halves():
    picture = timeline_svg(
        lanes_of([trace(0.0)]), lanes_of([trace(1.0), trace(5.0)]), title='a < b & "c"'
    )
    root = ElementTree.fromstring(picture)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert 'a < b & "c"' in texts
    assert texts.count("disk0") == 2
    hovers = [t.text for t in root.iter(f"{SVG}title")]
    assert "expert L0 E3: 1.0 s" in hovers
    assert "href" not in picture  # self-contained


def test_bars_are_to_scale_on_one_axis():
    root = ElementTree.fromstring(timeline_svg(lanes_of([trace(0.0)]), lanes_of([trace(0.0)])))
    widths = [
        float(r.get("width")) for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None
    ]
    reads, experts = sorted(widths, reverse=True)[:2], sorted(widths)[2:4]
    assert reads[0] == reads[1] == pytest.approx(2 * experts[0], rel=0.01)


def test_bubbles_of_the_lane_that_bounds_are_outlined():
    picture = timeline_svg({}, lanes_of([trace(0.0), trace(3.5, 1)]), title="t")
    root = ElementTree.fromstring(picture)
    outlined = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "u"]
    hovers = [t.text for r in outlined for t in r.iter(f"{SVG}title")]
    assert hovers == ["disk is idle: 1.5 s", "disk is idle: 1.5 s"]
    assert "disk bounds it and is idle 43% of the time" in picture


def test_a_chrome_trace_has_a_row_of_bubbles_that_are_no_tasks():
    chrome = chrome_trace([trace(0.0)], [trace(0.0)])
    idle = [e for e in chrome["traceEvents"] if e.get("cat") == "bubbles"]
    assert [(e["ts"], e["dur"]) for e in idle] == [(2e6, 1.5e6)] * 2
    rows = [e["args"]["name"] for e in chrome["traceEvents"] if e["name"] == "thread_name"]
    assert rows.count("bubbles of disk") == 2
    assert lanes_of_chrome(chrome)[0].keys() == {"disk0", "cpu", "host"}


def test_empty_halves_are_drawn_as_such():
    ElementTree.fromstring(timeline_svg({}, {}))
    assert "nothing to show" in timeline_svg({}, lanes_of([trace(0.0)]))


def test_thin_neighbours_of_a_kind_are_joined_and_keep_their_span():
    bars = [Bar(i * 0.001, i * 0.001 + 0.001, "experts", f"e{i}") for i in range(1000)]
    joined = join_thin(bars, 1000.0)
    assert len(joined) == 1
    assert (joined[0].start, joined[0].end) == (0.0, pytest.approx(1.0))
    other = [bars[0], bars[1]._replace(kind="read")]
    assert join_thin(other, 1000.0) == other


def test_window_cuts_and_shifts():
    cut = window(
        {"cpu": [Bar(0, 2, "read", "a"), Bar(2, 4, "read", "b"), Bar(9, 10, "read", "c")]}, 1, 3
    )
    assert cut == {"cpu": [Bar(0, 1, "read", "a"), Bar(1, 2, "read", "b")]}
    assert busy_share(cut["cpu"], 4) == 0.5
    assert busy_share([], 0) == 0.0


def test_a_long_run_shows_sweeps_from_its_middle():
    lanes = lanes_of([trace(i * 4.0, i) for i in range(20)])
    shown = middle(lanes, sweeps=3)
    assert max(b.end for bars in shown.values() for b in bars) == pytest.approx(12.0)
    short = lanes_of([trace(0.0)])
    assert middle(short) is short
    assert middle({}) == {}


def test_picture_is_written_beside_the_trace(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(chrome_trace([trace(5.0)], [trace(0.0)])))
    picture = draw_trace(path, "title")
    assert picture.name == "trace.json.svg"
    ElementTree.parse(picture)
