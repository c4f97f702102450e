"""Time in which a core was away is a load's, not that of the task it hit."""

from __future__ import annotations

import math

import pytest

from headrace.planner.stalls import MOST_AT_ONCE, spread
from headrace.planner.timed import Timed
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM

ROOFS = {CPU_FLOPS: 100e9, DRAM: 20e9, DISK: 1e9}


def task(op: str, seconds: float, rows: float = 64) -> Timed:
    return Timed(op, rows, {CPU_FLOPS: 1e9 * seconds, DRAM: 1.0}, seconds)


def load(rows: float = 64, stalls: int = 0) -> list[list[Timed]]:
    """Eight sweeps of ten experts, 2 ms each, and a ``router`` of 1 ms; in the first ``stalls``
    of them one expert stood still for 4 ms."""
    sweeps = [[task("router", 1e-3), *[task("expert", 2e-3, rows)] * 10] for _ in range(8)]
    for sweep in sweeps[:stalls]:
        sweep[1] = sweep[1]._replace(seconds=6e-3)
    return sweeps


def seconds_of(sweeps, op=None):
    return math.fsum(t.seconds for sweep in sweeps for t in sweep if op in (None, t.op))


def test_where_nothing_stands_still_nothing_changes():
    (found,) = spread([load()], ROOFS)
    assert seconds_of(found, "expert") == pytest.approx(seconds_of(load(), "expert"))
    assert seconds_of(found, "router") == pytest.approx(seconds_of(load(), "router"))


def test_stalls_are_shared_and_none_is_lost():
    before = load(stalls=6)
    (found,) = spread([before], ROOFS)
    assert seconds_of(found) == pytest.approx(seconds_of(before), rel=1e-6)
    # twice the median is what a task may take by itself; the rest is 6 x 2 ms of 180
    assert seconds_of(found, "router") == pytest.approx(8e-3 * (1 + 12 / 180), rel=1e-6)
    assert max(t.seconds for sweep in found for t in sweep) < 6e-3


def test_a_long_disturbance_counts_as_a_part_of_the_load():
    before = load()
    before[3][2] = before[3][2]._replace(seconds=10.0)
    (found,) = spread([before], ROOFS)
    most = seconds_of(load()) + 2e-3
    assert seconds_of(found) == pytest.approx(most * (1 + MOST_AT_ONCE), rel=1e-6)


def test_experts_stand_still_as_in_loads_of_as_many_rows():
    """Few rows in a load where others have many: reads go on beside all of it for as long."""
    mixed = load(64)
    mixed[0] += [task("expert", 1e-3, 4)] * 3
    few = load(4, stalls=8)
    quiet, _ = spread([mixed, few], ROOFS)
    slower = [t.seconds / 1e-3 for t in quiet[0] if t.op == "expert" and t.rows == 4]
    assert slower == pytest.approx([1 + 16 / 184] * 3, rel=1e-6)
    assert seconds_of(quiet, "router") == pytest.approx(8e-3)


def test_reads_are_as_they_were():
    reads = [Timed("read_page", 64, {DISK: 1e6}, s) for s in (1e-3, 9.0)]
    read = Timed("read_page", 64, {DISK: 1e6, DRAM: 1e6}, 5.0)
    (found,) = spread([[[*reads, read]]], ROOFS)
    assert found == [[*reads, read]]
