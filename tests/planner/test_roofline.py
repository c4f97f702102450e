"""Roofs, turning points and balance; and the published case study."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.planner.case_study import published_attention, published_batch, published_ffn
from headrace.planner.operations import layer_operations
from headrace.planner.roofline import (
    Operation,
    at_balance,
    balance_ratio,
    best_place,
    cross_roof,
    level_index,
    memory_roof,
    reach,
    turning_points,
)
from headrace.specs.hardware import Level
from headrace.specs.registry import known_hardware, known_models

MIXTRAL = known_models()["mixtral-8x7b"].spec
L4 = known_hardware("l4-paper").hardware.levels
HOST, DEVICE = 1, 2
TWO = (Level("host", 100.0, 10.0, 0, 0.0), Level("device", 4000.0, 40.0, 0, 2.0))


def test_roofs_are_the_lesser_of_arithmetic_and_memory() -> None:
    assert memory_roof(TWO[0], 5) == 50
    assert memory_roof(TWO[0], 50) == 100
    assert cross_roof(TWO, 1, 0, 7) == 14
    op = Operation("x", 60.0, {"host": 2.0, "device": 30.0})
    assert reach(TWO, op, 1, 0) == (60.0, "link host to device")
    assert reach(TWO, op, 0, 0) == (100.0, "host arithmetic")
    assert best_place(TWO, op, 0) == (0, (100.0, "host arithmetic"))


def test_data_from_further_away_crosses_every_link() -> None:
    levels = (Level("disk", 0.0, 3.0, 0, 0.0), Level("host", 100.0, 10.0, 0, 1.5), TWO[1])
    assert cross_roof(levels, 2, 0, 8) == 1.5 * 8
    op = Operation("x", 80.0, {"disk": 10.0, "host": 10.0, "device": 10.0})
    assert reach(levels, op, 2, 0) == (12.0, "link disk to host")
    assert reach(levels, op, 0, 0).flops_per_second == 0.0
    assert best_place(levels, op, 0)[0] == 1  # as fast as on the device, and nearer
    assert turning_points(levels, 2, 0).p1 == 0.0


def test_turning_points_are_where_the_roofs_cross() -> None:
    p1, p2 = turning_points(TWO, 1, 0, intensity=30)
    assert cross_roof(TWO, 1, 0, p1) == memory_roof(TWO[0], p1)
    assert cross_roof(TWO, 1, 0, p2) == memory_roof(TWO[1], 30)
    assert turning_points(TWO, 1, 0).p2 == 4000 / 2
    slow = (TWO[0]._replace(bandwidth=1.0), TWO[1]._replace(link=20.0))
    assert turning_points(slow, 1, 0).p1 == 100.0  # its memory feeds the link


def test_at_the_balance_point_both_memories_bound() -> None:
    assert balance_ratio(TWO, 1, 0) == 2 / 40
    op = Operation("x", 10.0, {"host": 1.0, "device": 20.0})
    assert at_balance(TWO, op, 1, 0) == pytest.approx(1.0)


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.integers(0, 1))
def test_more_of_any_rate_never_reaches_less(flops: float, rate: float, home: int) -> None:
    op = Operation("x", 60.0, {"host": 2.0, "device": 30.0})
    grown = (TWO[0], TWO[1]._replace(flops=4000 + flops, bandwidth=40 + rate, link=2 + rate))
    before, after = (reach(levels, op, 1, home).flops_per_second for levels in (TWO, grown))
    assert after >= before


def test_levels_that_are_not_there_are_refused() -> None:
    assert level_index(TWO, "device") == 1
    for wrong in (lambda: level_index(TWO, "disk"), lambda: cross_roof(TWO, 0, 1, 1.0)):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError):
        turning_points(TWO, 1, 1)


# -- the case study: Mixtral-8x7B on the L4 host of Cao et al. 2024 ---------------------------


@pytest.mark.parametrize(
    ("bits", "exact", "published"),
    [(16, False, 2.0), (4, False, 8.0), (16, True, 4.0), (4, True, 16.1)],
)
def test_decode_attention_stays_on_the_host_in_both_countings(bits, exact, published) -> None:
    op = published_attention(MIXTRAL, 512, bits, exact=exact)
    assert op.intensity("host") == pytest.approx(published, rel=0.01)
    assert op.intensity("host") < turning_points(L4, DEVICE, HOST).p1
    assert best_place(L4, op, HOST)[0] == HOST


@pytest.mark.parametrize(("batch", "published"), [(32, 8.0), (128, 31.95), (1024, 252.6)])
def test_the_ffn_gains_intensity_with_the_batch(batch: int, published: float) -> None:
    assert published_ffn(MIXTRAL, batch).intensity("host") == pytest.approx(published, rel=2e-3)


def test_turning_points_of_the_ffn() -> None:
    kernel = published_ffn(MIXTRAL, 128).intensity("device")
    p1, p2 = turning_points(L4, DEVICE, HOST, kernel)
    assert p1 == pytest.approx(81, rel=0.01)
    assert published_batch(MIXTRAL, p1) == pytest.approx(327, rel=0.01)
    assert p2 == pytest.approx(599, rel=0.002)
    assert published_batch(MIXTRAL, p2) == pytest.approx(2474, rel=0.002)
    assert balance_ratio(L4, DEVICE, HOST) == pytest.approx(16 / 300)


def test_the_work_model_counts_what_the_exact_counting_does() -> None:
    attention, prompt, projections, experts = layer_operations(MIXTRAL, 1024, 128, 512)
    assert attention.intensity("host") == pytest.approx(4.0, rel=0.02)  # rows count, too
    assert prompt.intensity("host") > 100
    assert experts.intensity("host") == pytest.approx(256, rel=1e-6)
    assert experts.intensity("device") == pytest.approx(32, rel=0.05)
    assert projections.intensity("host") == pytest.approx(1024, rel=0.01)
    assert best_place(L4, attention, HOST)[0] == HOST
    assert best_place(L4, experts, HOST)[0] == DEVICE


@pytest.mark.parametrize(
    "name", ["deepseek-v2-lite", "gpt-oss-20b", "qwen2-57b-a14b", "llama-2-7b"]
)
def test_every_kind_of_model_has_operations(name: str) -> None:
    for op in layer_operations(known_models()[name].spec, 64, 20, 300):
        assert op.flops > 0
        assert 0 < op.intensity("host") < math.inf
    with pytest.raises(UsageError):
        layer_operations(MIXTRAL, 8, 9, 100)
