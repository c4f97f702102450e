"""A run held against its prediction, and what it does to a profile."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import UsageError
from headrace.planner.interval import bias
from headrace.planner.profile import Profile, ShapeCurves, shape_from
from headrace.planner.verify import Run, run_from, updated
from headrace.specs.hardware import CPU_FLOPS, DISK

from .test_profile import profile, shape


def summary(**changes: Any) -> dict[str, Any]:
    made = {
        "wall_seconds": 10.0,
        "predicted_seconds": 12.0,
        "predicted_after_seconds": 8.0,
        "predicted_assumed": True,
        "predicted_bias": 0.0,
        "bound_by": "cpu",
        "policy": {"threads": 2, "kernels": "native"},
        "lanes": {
            "cpu": {"busy_seconds": 9.0, "predicted_busy_seconds": 4.5},
            "disk": {"busy_seconds": 5.0, "predicted_busy_seconds": 6.0},
            "host": {"busy_seconds": 0.1},
        },
        "ops": {
            "moe": {"seconds": 8.0, "tasks": 3, "predicted_seconds": 4.0},
            "router": {"seconds": 0.01, "tasks": 3, "predicted_seconds": 0.5},
            "commit": {"seconds": 0.1, "tasks": 1},
        },
    }
    return {**made, **changes}


def fresh(*shapes: ShapeCurves) -> Profile:
    """A profile that no run was compared with."""
    return replace(profile(*shapes), residuals=())


def test_job_lanes_and_ops_stand_beside_what_was_predicted():
    rows = {(r.kind, r.name): r for r in Run(summary(), shape(0.5)).compared()}
    assert rows["job", "before, lengths assumed"].error == pytest.approx(0.2)
    assert rows["job", "after, lengths known"].error == pytest.approx(-0.2)
    assert rows["lane", "cpu"].error == pytest.approx(-0.5)
    assert rows["op", "moe"].error == pytest.approx(-0.5)
    assert ("op", "commit") not in rows
    assert ("lane", "host") not in rows


def test_what_a_run_showed_scales_its_curves():
    run = Run(summary(), shape(0.5, efficiency={"moe": ((1.0, 0.5),), "router": ((1.0, 0.5),)}))
    before = fresh(shape(0.9), shape(0.8, hidden=512))
    after = updated(before, run)
    efficiency = {s.hidden: s.efficiency for s in after.shapes}
    assert efficiency[4096]["moe"] == ((1.0, 0.25),)
    assert efficiency[4096]["router"] == ((1.0, 0.5),), "too short to tell"
    assert efficiency[512] == shape(0.8).efficiency
    assert after.hardware == before.hardware, "the disk was waiting"


def test_the_next_prediction_of_the_run_with_what_earlier_runs_showed_is_what_was_measured():
    told = Run(summary(predicted_bias=math.log(1.25)), shape(0.5))
    before = profile(shape(0.9)).with_residuals([0.3])
    after = updated(before, told)
    assert after.residuals == before.residuals
    expected = math.exp(bias(before.residuals))
    played = 4.0 / 1.25 * 0.5 / after.shapes[-1].efficiency["moe"][0][1]
    assert expected * played == pytest.approx(8.0)


@pytest.mark.parametrize("other", [{"threads": 1}, {"kernels": "reference"}])
def test_a_run_unlike_those_of_the_profile_is_refused(other: dict[str, Any]):
    policy = {"threads": 2, "kernels": "native", **other}
    with pytest.raises(UsageError, match="one set of kernels"):
        updated(fresh(shape(0.9)), Run(summary(policy=policy), shape(0.5)))


def test_what_attention_takes_anyway_grows_with_what_it_took():
    attention = {"attn": {"seconds": 8.0, "tasks": 3, "predicted_seconds": 4.0}}
    measured = shape(0.5, efficiency={"attn": ((1.0, 0.5),)}, attention_seconds=6e-6)
    after = updated(fresh(), Run(summary(ops=attention), measured)).shapes[-1]
    assert after.attention_seconds == pytest.approx(12e-6)
    assert after.efficiency["attn"] == ((1.0, 0.25),)
    same = updated(fresh(), Run(summary(), measured)).shapes[-1]
    assert same.attention_seconds == measured.attention_seconds, "it did not run"


def test_a_run_bound_by_the_disk_scales_its_rate():
    before = fresh(shape(0.9))
    after = updated(before, Run(summary(bound_by="disk"), shape(0.5)))
    assert after.hardware.roofs[DISK] == pytest.approx(before.hardware.roofs[DISK] * 6 / 5)
    assert after.hardware.lane_rate == pytest.approx(before.hardware.lane_rate * 6 / 5)
    assert after.hardware.roofs[CPU_FLOPS] == before.hardware.roofs[CPU_FLOPS]


def test_no_share_grows_beyond_its_roof():
    ops = {"moe": {"seconds": 2.0, "tasks": 3, "predicted_seconds": 400.0}}
    after = updated(fresh(), Run(summary(ops=ops), shape(0.5)))
    assert max(share for _, share in after.shapes[0].efficiency["moe"]) == 1.0


def test_the_next_prediction_of_the_same_run_is_nearer():
    run = Run(summary(), shape(0.5))
    after = updated(fresh(shape(0.5)), run)
    assert after.shapes == (replace(shape(0.5), efficiency={"moe": ((1.0, 0.25), (16.0, 0.125))}),)


@pytest.mark.parametrize(
    "change",
    [
        {"wall_seconds": "x"},
        {"wall_seconds": math.nan},
        {"predicted_seconds": math.nan},
        {"lanes": 3},
        {"bound_by": "moon"},
        {"predicted_bias": 1e9},
        {"policy": {}},
        {"predicted_bias": math.nan},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any]):
    kept = json.loads(json.dumps(shape(0.5).to_dict()))
    assert run_from({"summary": summary(), "shape": kept}, shape_from).wall_seconds == 10.0
    data = {"summary": summary(**change), "shape": kept}
    with pytest.raises(UsageError, match="no record"):
        run_from(data, shape_from)
    with pytest.raises(UsageError, match="no record"):
        run_from([], shape_from)
