"""The split of experts in closed form is the optimum that a solver of linear programs finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.planner.device_split import Split, Terms, best_split

highspy = pytest.importorskip("highspy")

W = 100.0


def solved(t: Terms, most_cpu: float) -> float | None:
    """The same program, by HiGHS; None if it has no solution."""
    lp = highspy.Highs()
    lp.silent()
    seconds, x, c, d = (lp.addVariable(lb=0.0) for _ in range(4))
    s = 1.0 - x - c
    lp.addConstr(s >= 0.0)
    lp.addConstr(s - d >= 0.0)
    lp.addConstr(c <= most_cpu)
    lp.addConstr(x * W + min(1.0, t.ring) * W * s <= t.device_room)
    lp.addConstr((s - d + c) * W <= t.host_room)
    lp.addConstr(seconds >= t.link + t.whole_link * s)
    lp.addConstr(seconds >= t.cpu + t.whole_cpu * c)
    lp.addConstr(seconds >= t.gpu)
    lp.addConstr(seconds >= t.disk + t.whole_disk * d)
    lp.addConstr(seconds >= t.dram + t.whole_dram_streamed * s + t.whole_dram_cpu * c)
    lp.minimize(seconds)
    if lp.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return lp.val(seconds)


amounts = st.integers(0, 100).map(lambda n: n / 10)
rooms = st.integers(0, 160).map(float)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_closed_form_is_the_optimum(data):
    names = ("link", "whole_link", "cpu", "whole_cpu", "gpu", "disk", "whole_disk", "dram",
             "whole_dram_streamed", "whole_dram_cpu")  # fmt: skip
    numbers = {name: data.draw(amounts) for name in names}
    ring = 2.0 / data.draw(st.integers(1, 40))
    terms = Terms(W, ring, data.draw(rooms), data.draw(rooms), **numbers)
    most = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    expected, found = solved(terms, most), best_split(terms, most)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.seconds == pytest.approx(expected, rel=1e-6, abs=1e-6)
    check(terms, found, most)


def test_a_share_that_just_fits_does_not_stream_for_rounding():
    terms = Terms(W, 2.0, 1.0, 99.0, 0.0, 0.0, 0.0, 0.0, whole_dram_streamed=0.1)
    found = best_split(terms)
    assert found is not None
    assert found.seconds == pytest.approx(0.0, abs=1e-9)
    assert found.cpu == pytest.approx(0.99)
    check(terms, found, 1.0)


def check(t: Terms, found: Split, most: float) -> None:
    within = 1e-6 * W
    assert min(found.resident, found.cpu, found.disk) >= 0.0
    assert found.cpu <= most + 1e-9
    assert found.disk <= found.streamed + 1e-9
    ring = min(1.0, t.ring) * found.streamed * W
    assert found.resident * W + ring <= t.device_room + within
    assert (found.streamed - found.disk + found.cpu) * W <= t.host_room + within
