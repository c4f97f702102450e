"""What the turns of a load add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.engine.sweep import Sweep
from headrace.engine.turns import Turn, batches_of, loads_of, seconds_of
from headrace.machines.trace import Span, SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task

TASKS = (
    Task(Op.ROUTER, "cpu", (), ()),
    Task(Op.READ_PAGE, "disk0", (Buffer("routing", 0),), (), page=7),
    Task(Op.EXPERT, "cpu", (), ()),
)


def trace(at: float, moved: int, *tasks: Task) -> SweepTrace:
    """A router of 1 s, a read of 2 s, an expert of 1 s, and half a second before the last two."""
    spans = (Span(0, at, at + 1.0), Span(1, at + 1.5, at + 3.5), Span(2, at + 4.0, at + 5.0))
    sweep = Sweep(0)
    sweep.binding.page_bytes[7] = moved
    return SweepTrace(0, Schedule("test", tasks or TASKS, {}), spans, sweep)


@pytest.mark.parametrize(
    ("schedule", "seconds"), [("stream", 4.0), ("on_demand", 6.0), ("one_by_one", 6.0)]
)
def test_gaps_are_the_reads_where_reads_are_waited_for(schedule: str, seconds: float) -> None:
    turn = Turn(schedule, "two rows", [(1, 192)] * 2, ())
    turn.add_reads([trace(0.0, 100)])
    turn.add_reads([trace(10.0, 300)])
    (read,) = turn.reads()
    assert (read.op, read.rows) == ("read_page", 2)
    assert read.amounts == {"disk": 400, "lane:": 400}, "one request at a time"
    assert read.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("schedule", "counted"), [("stream", 50), ("on_demand", 0)])
def test_where_reads_wait_for_routers_no_other_says_what_they_take(
    schedule: str, counted: int
) -> None:
    turn = Turn(schedule, "the head", [(1, 192)], ())
    ahead = replace(TASKS[1], reads=())
    turn.add_reads([trace(0.0, 50, TASKS[0], ahead, TASKS[2])])
    assert turn.read_bytes == counted


def test_without_bytes_there_is_no_read() -> None:
    turn = Turn("on_demand", "all stay", [(1, 192)], ())
    turn.add_reads([trace(0.0, 0)])
    assert list(turn.reads()) == []


def test_lanes_of_a_disk_are_busy_together() -> None:
    two = (Task(Op.READ_PAGE, "disk0", (), ()), Task(Op.READ_PAGE, "disk1", (), ()))
    spans = (Span(0, 0.0, 2.0), Span(1, 1.0, 4.0))
    trace = SweepTrace(0, Schedule("test", two, {}), spans)
    assert seconds_of(lambda task: True, [trace]) == (4.0, 5.0)


def test_few_sequences_have_no_load_of_many() -> None:
    assert "16 decodes" in loads_of(16)
    assert "64 decodes" not in loads_of(16)
    first, second = batches_of([(1, 192), (64, 64)], 1000, places=1, blocks_each=4)[:2]
    assert first.rows == 65
    assert first.micro_batches[0].segments[0].blocks == (0, 1, 2, 3), (
        "shared, where there is no room"
    )
    assert first.micro_batches[0].segments[1].tokens != second.micro_batches[0].segments[1].tokens
