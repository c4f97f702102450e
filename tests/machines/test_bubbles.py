"""Bubbles are gaps of what bounds a run, lanes of one resource taken together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.machines.bubbles import bubbles, resource_of

SPANS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 9)).map(lambda p: (p[0], p[0] + p[1])), max_size=6
)


def test_gaps_of_the_busiest_lane():
    found = bubbles({"cpu": [(0, 2), (3, 4), (6, 10)], "disk0": [(0, 5)]})
    assert found is not None
    assert (found.resource, found.lanes) == ("cpu", ("cpu",))
    assert found.gaps == ((2, 3), (4, 6))
    assert found.share == pytest.approx(0.3)


def test_lanes_of_one_disk_are_busy_together():
    found = bubbles({"disk0": [(0, 4), (9, 10)], "disk1": [(3, 7)], "cpu": [(0, 5)]})
    assert found is not None
    assert (found.resource, found.gaps) == ("disk", ((7, 9),))
    assert resource_of("h2d") == resource_of("packets") == "link"


def test_waiting_at_both_ends_counts():
    found = bubbles({"cpu": [(2, 8)], "host": [(0, 1), (9, 10)]})
    assert found is not None
    assert found.gaps == ((0, 2), (8, 10))


def test_nothing_has_no_bubbles():
    assert bubbles({}) is None
    assert bubbles({"cpu": [(1, 1)]}) is None


@given(st.dictionaries(st.sampled_from(["cpu", "disk0", "disk1", "gpu"]), SPANS, min_size=1))
def test_no_task_of_the_resource_runs_in_a_bubble(lanes):
    found = bubbles(lanes)
    if found is None:
        return
    own = [span for lane in found.lanes for span in lanes[lane]]
    for start, end in found.gaps:
        assert start < end
        assert not any(s < end and e > start for s, e in own)
    whole = [span for spans in lanes.values() for span in spans]
    covered = max(e for _, e in whole) - min(s for s, _ in whole)
    ticks = {t for s, e in own for t in range(s, e)}
    assert found.share == pytest.approx(1 - len(ticks) / covered)
