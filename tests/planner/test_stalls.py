"""Time in which a core was away is a load's, not that of the task it hit, and what reads cost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.planner.stalls import MOST_AT_ONCE, settled, together
from headrace.planner.timed import Timed
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM

ROOFS = {CPU_FLOPS: 100e9, DRAM: 20e9, DISK: 1e9}


def task(op: str, seconds: float, rows: float = 64) -> Timed:
    return Timed(op, rows, {CPU_FLOPS: 1e9 * seconds, DRAM: 1.0}, seconds)


def load(stalls: int = 0, reading: float = 0.0) -> list[list[Timed]]:
    """Eight sweeps of ten experts, 2 ms each, and a ``router`` of 1 ms; in the first ``stalls``
    of them one expert stood still for 4 ms. ``reading`` seconds of reads in all."""
    sweeps = [[task("router", 1e-3), *[task("expert", 2e-3)] * 10] for _ in range(8)]
    for sweep in sweeps[:stalls]:
        sweep[1] = sweep[1]._replace(seconds=6e-3)
    read = Timed("read_page", 64, {DISK: 1e9 * reading}, reading)
    return [[*sweep, read] if reading else sweep for sweep in sweeps]


def seconds_of(sweeps, op=None):
    return math.fsum(t.seconds for sweep in sweeps for t in sweep if op in (None, t.op))


def test_where_nothing_stands_still_nothing_changes():
    found = settled([load()], ROOFS)
    assert found.contention == 0
    assert seconds_of(found.loads[0], "expert") == pytest.approx(seconds_of(load(), "expert"))
    assert seconds_of(found.loads[0], "router") == pytest.approx(seconds_of(load(), "router"))


def test_without_reads_stalls_are_shared_and_none_is_lost():
    before = load(stalls=6)
    found = settled([before], ROOFS)
    (after,) = found.loads
    assert found.contention == 0
    assert seconds_of(after) == pytest.approx(seconds_of(before), rel=1e-6)
    # twice the median is what a task may take by itself; the rest is 6 x 2 ms of 180
    assert seconds_of(after, "router") == pytest.approx(8e-3 * (1 + 12 / 180), rel=1e-6)
    assert max(t.seconds for sweep in after for t in sweep) < 6e-3


def test_a_long_disturbance_counts_as_a_part_of_the_load():
    before = load()
    before[3][2] = before[3][2]._replace(seconds=10.0)
    (after,) = settled([before], ROOFS).loads
    most = seconds_of(load()) + 2e-3
    assert seconds_of(after) == pytest.approx(most * (1 + MOST_AT_ONCE), rel=1e-6)


def test_what_is_lost_beside_reads_is_contention():
    """6 x 2 ms are lost: arithmetic and reads are that much shorter apart."""
    found = settled([load(stalls=6, reading=0.112)], ROOFS)
    (after,) = found.loads
    assert found.contention == pytest.approx(0.012 / 0.1)
    assert seconds_of(after, "router") == pytest.approx(8e-3)
    assert [t.seconds for t in after[0] if t.op == "read_page"] == [pytest.approx(0.1)]


def test_few_reads_show_no_contention():
    assert settled([load(stalls=6, reading=0.05)], ROOFS).contention == 0


def test_reads_of_other_schedules_are_as_they_were():
    reads = [Timed("read_page of one_by_one", 64, {DISK: 1e6}, s) for s in (1e-3, 9.0)]
    both = Timed("read_page of on_demand", 64, {DISK: 1e6, DRAM: 1e6}, 5.0)
    assert settled([[[*reads, both]]], ROOFS).loads == [[[*reads, both]]]


@given(st.floats(1e-6, 10), st.floats(1e-6, 10), st.floats(0, 1))
def test_contention_never_makes_a_sweep_shorter_or_longer_than_one_after_the_other(a, b, c):
    longer = c * together(a, b)
    assert 0 <= longer <= min(a, b) + 1e-12
    assert max(a, b) + longer <= a + b + 1e-9
