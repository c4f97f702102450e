"""Profiles: the nearest shape counts, and nobody's data is believed unread."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import UsageError
from headrace.planner.interval import PRIOR_RUNS, bias, half_width
from headrace.planner.profile import (
    MOST_RESIDUALS,
    Profile,
    Read,
    ShapeCurves,
    profile_from,
)
from headrace.specs.hardware import Hardware
from headrace.specs.registry import known_hardware, known_model

STOCK = known_hardware("cpu-2core").hardware
MIXTRAL = known_model("mixtral-8x7b").spec


def shape(share: float, **changes: Any) -> ShapeCurves:
    measured = replace(STOCK, efficiency={"moe": ((1.0, share), (16.0, share / 2))})
    return replace(ShapeCurves.of(MIXTRAL, "f16", False, measured), **changes)


def profile(*shapes: ShapeCurves) -> Profile:
    hardware = Hardware("here", dict(STOCK.roofs), lane_rate=1e9, measured=True, noise=0.02)
    reads = (Read(1 << 20, 1, 1e9), Read(1 << 20, 2, 1.5e9))
    machine = {"processor": "p", "threads": "2", "kernels": "native"}
    return Profile("2026-11-26T10:00:00+00:00", machine, hardware, reads, shapes, (0.1,))


def written(made: Profile) -> dict[str, Any]:
    """``made`` as its file holds it, and is read."""
    data: dict[str, Any] = json.loads(json.dumps(made.to_dict()))
    assert profile_from(data) == made
    return data


def test_what_is_written_is_read():
    made = replace(profile(shape(0.5), shape(0.4, streams=True)), beside={"reads": 0.9})
    assert written(made)["beside"] == {"reads": 0.9}


def test_the_nearest_shape_counts():
    near, far = shape(0.5, hidden=2048), shape(0.4, hidden=512)
    streamed, other = shape(0.3, streams=True), shape(0.2, weights="int8")
    made = profile(far, other, near)
    assert made.hardware_for(MIXTRAL, "f16", False).efficiency_of("moe", 1) == 0.5
    made = profile(other, streamed, shape(0.1))
    assert made.hardware_for(MIXTRAL, "f16", True).efficiency_of("moe", 1) == 0.3
    assert made.hardware_for(MIXTRAL, "f16", False).efficiency_of("moe", 1) == 0.1
    assert profile().hardware_for(MIXTRAL, "f16", False).efficiency == {}


def test_shares_are_of_the_rates_they_were_measured_with():
    roofs = {"cpu_flops": 5e11, "dram": 7e10}
    found = profile(shape(0.5, roofs=roofs)).hardware_for(MIXTRAL, "f16", False)
    assert found.roofs == {**STOCK.roofs, **roofs}


def test_a_shape_brings_what_its_tasks_take_beside_their_shares():
    own = {"attention_seconds": 5e-6, "row_seconds": 3e-6, "token_seconds": 7e-6}
    found = profile(shape(0.5, **own)).hardware_for(MIXTRAL, "f16", False)
    assert {name: getattr(found, name) for name in own} == own


def test_roofs_of_another_format_are_not_known():
    made = profile(shape(0.5, weights="int8"))
    assert made.known_for(MIXTRAL, "f16", False) is None
    assert profile(shape(0.5)).known_for(MIXTRAL, "f16", True) is not None


def test_curves_of_other_activations_are_others():
    made = profile(shape(0.5), shape(0.3, activations="bf16"))
    assert made.hardware_for(MIXTRAL, "f16", False).efficiency_of("moe", 1) == 0.5
    assert made.hardware_for(MIXTRAL, "f16", False, "bf16").efficiency_of("moe", 1) == 0.3
    assert made.known_for(MIXTRAL, "f16", False, "bf16") is not None
    assert profile(shape(0.5)).known_for(MIXTRAL, "f16", False, "bf16") is None


def test_runs_that_were_compared_make_the_interval():
    made = profile()
    found = made.hardware_for(MIXTRAL, "f16", False)
    assert (found.bias, found.error) == (bias((0.1,)), half_width((0.1,), 0.02))
    many = made.with_residuals([0.2] * 100)
    assert many.residuals == (0.2,) * MOST_RESIDUALS
    assert made.with_residuals([1.5, -1.5, 0.3]).residuals == (0.1, 0.3)  # stopped meanwhile


def test_residuals_move_the_interval_from_the_assumed_to_the_seen():
    assumed = half_width(())
    assert 0.1 < assumed < 0.2
    assert half_width([0.01] * 40) < assumed / 2 < assumed < half_width([0.3, -0.3] * 5)
    assert half_width((), noise=0.1) > assumed
    # far more runs than were assumed: 1.645 spreads of a normal distribution
    assert half_width([0.1, -0.1] * 2000) == pytest.approx(1.645 * 0.1, rel=0.01)
    # what they have in common is expected, and no longer widens it
    assert half_width([0.3] * 200) < assumed < half_width([0.3] * 4)
    assert PRIOR_RUNS > 3  # of fewer the expansion of t is not good


def test_what_runs_have_in_common_is_expected_of_the_next_the_more_the_more_there_were():
    assert bias(()) == 0.0
    assert bias([0.1]) == pytest.approx(0.02)
    assert bias([0.1, -0.1]) == pytest.approx(0.0)
    assert bias([0.1] * 96) == pytest.approx(0.096)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 3},
        {"made": 5},
        {"machine": {"processor": 1}},
        {"hardware": {}},
        {"residuals": [float("nan")]},
        {"residuals": [9.0]},
        {"reads": [{"request_bytes": -1, "depth": 1, "rate": 1.0}]},
        {"reads": 3},
        {"beside": {"reads": 2.0}},
        {"shapes": [{}]},
    ],
)
def test_damage_is_refused(damage: dict[str, Any]):
    data = {**written(profile(shape(0.5))), **damage}
    with pytest.raises(UsageError, match="no profile"):
        profile_from(data)


@pytest.mark.parametrize(
    "points", [[], [[1.0, 0.0]], [[1.0, 2.0]], [[4.0, 0.5], [1.0, 0.5]], [[1]]]
)
def test_curves_are_shares_at_ascending_rows(points: list[Any]):
    data = written(profile(shape(0.5)))
    data["shapes"][0]["efficiency"] = {"moe": points}
    with pytest.raises(UsageError, match="no profile"):
        profile_from(data)


@pytest.mark.parametrize("data", [None, [], "x", {}, {"format": 1}])
def test_what_is_no_object_is_refused(data: object):
    with pytest.raises(UsageError, match="no profile"):
        profile_from(data)


def test_hardware_needs_every_roof():
    data = written(profile())
    del data["hardware"]["roofs"]["dram"]
    with pytest.raises(UsageError, match="no profile"):
        profile_from(data)
