"""Formats are chosen among those that were allowed, and only where the job gains by them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import BudgetError, UsageError
from headrace.planner.candidates import Situation, smallest
from headrace.planner.formats import CHANGES, STORED, FormatSearch, changes_in, plan_formats
from headrace.planner.plan import Overrides
from headrace.planner.search import best_plan
from headrace.planner.what_if import LEAST_GAIN, in_integers
from headrace.specs.hardware import CPU_FLOPS, DRAM
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload

JOB = Workload.uniform(12, 64, 32)


def situation(machine: str, name: str = "mixtral-8x7b", job: Workload = JOB) -> Situation:
    """Two layers of a known model, with twice the memory that would just do."""
    model = replace(known_model(name).spec, layers=2)
    hardware = known_hardware(machine).hardware
    at = Situation(model, page_layout(model), None, hardware, job, 0)
    return replace(at, budget_bytes=2 * least_bytes(at))


def least_bytes(at: Situation) -> int:
    return at.map_of(smallest(at)).total_bytes


def found(at: Situation, *allowed: str) -> FormatSearch:
    return plan_formats(at, allowed or CHANGES, lambda each: each)


def test_what_is_allowed_is_any_or_a_list():
    assert changes_in("any") == CHANGES == ("int8", "int4", "kv-int8")
    assert changes_in("KV-int8, int4") == ("int4", "kv-int8")


@pytest.mark.parametrize("text", ["", "int9", "any,int8", "int8,,int4", "f16", "stored"])
def test_unknown_changes_are_refused(text):
    with pytest.raises(UsageError, match="--formats") as refusal:
        changes_in(text)
    assert "kv-int8" in str(refusal.value.expected)


@pytest.mark.parametrize(
    ("name", "machine", "share"),
    [
        ("mixtral-8x7b", "cpu-2core", 1.05),
        ("olmoe-1b-7b", "cpu-2core", 1.5),
        ("mixtral-8x7b", "laptop-nvme", 4.0),
        ("olmoe-1b-7b", "laptop-nvme", 1.05),
        ("olmoe-1b-7b", "t4", 1.5),
        ("mixtral-8x7b", "rtx-3090", 4.0),
    ],
)
def test_the_choice_is_never_slower_than_the_formats_in_use(name, machine, share):
    at = situation(machine, name)
    at = replace(at, budget_bytes=int(share * least_bytes(at)))
    search = found(at)
    assert search.tried[0].weights == STORED
    assert search.tried[0].kv_dtype == "f16"
    assert search.tried[0].plan == best_plan(at)
    assert len(search.tried) == 6
    assert search.chosen in search.tried
    assert search.chosen.seconds <= search.tried[0].seconds
    assert search.chosen.seconds * (1 - LEAST_GAIN) <= min(each.seconds for each in search.tried)
    assert search.chosen.plan is not None
    assert search.chosen.plan.memory.fits
    assert search.chosen.seconds <= best_plan(search.chosen.at).prediction.seconds


@pytest.mark.parametrize("machine", ["cpu-2core", "t4"])
def test_what_fits_in_int4_alone_is_planned_in_int4(machine):
    at = replace(situation(machine), overrides=Overrides(schedule="resident"))
    smaller = in_integers(at, "int8")
    assert smaller is not None
    size = least_bytes(smaller)
    at = replace(at, budget_bytes=size - 1)
    if at.hardware.has_device:
        at = replace(at, device_bytes=size * 3 // 4)
    with pytest.raises(BudgetError):
        best_plan(at)
    search = found(at, "int8", "int4")
    assert [each.plan is None for each in search.tried] == [True, True, False]
    assert (search.chosen.weights, search.chosen.kv_dtype) == ("int4", "f16")
    assert search.gain(search.chosen) is None
    assert search.chosen.at.near is None
    said = search.to_dict()["tried"]
    assert [each["job_seconds"] is None for each in said] == [True, True, False]
    assert said[0]["refusal"]


def test_what_fits_in_no_format_is_refused_as_it_is_stored():
    at = replace(situation("cpu-2core"), budget_bytes=1_000_000)
    with pytest.raises(BudgetError) as stored:
        best_plan(at)
    with pytest.raises(BudgetError) as refusal:
        found(at)
    assert refusal.value.smallest_bytes == stored.value.smallest_bytes


def test_formats_stay_where_bytes_are_not_what_a_job_waits_for():
    at = situation("cpu-2core")
    slow = {**at.hardware.roofs, CPU_FLOPS: 1e9}
    hardware = replace(at.hardware, roofs=slow)
    at = replace(at, hardware=hardware, budget_bytes=100 * least_bytes(at))
    search = found(at)
    assert search.chosen is search.tried[0]
    assert not search.changes_weights
    assert not search.changes_kv
    assert all(abs(search.gain(each)) < LEAST_GAIN for each in search.tried)


def test_a_format_may_have_rates_of_its_own():
    at = situation("cpu-2core")
    at = replace(at, budget_bytes=100 * least_bytes(at))

    def met(each: Situation) -> Situation:
        faster = 4.0 if each.model.integers else 1.0
        roofs = each.hardware.roofs
        roofs = {**roofs, CPU_FLOPS: faster * 1e10, DRAM: 1e12}
        return replace(each, hardware=replace(each.hardware, roofs=roofs))

    search = plan_formats(at, ("int8", "int4"), met)
    assert search.chosen.weights == "int8", "int4 saves nothing more, and changes more"
    assert search.gain(search.chosen) == pytest.approx(0.75, abs=0.1)


def test_only_what_is_allowed_is_tried():
    at = situation("cpu-2core")
    tried = [(each.weights, each.kv_dtype) for each in found(at, "int4").tried]
    assert tried == [(STORED, "f16"), ("int4", "f16")]
    at = replace(at, overrides=Overrides(kv_dtype="int8"))
    tried = [(each.weights, each.kv_dtype) for each in found(at, "kv-int8").tried]
    assert tried == [(STORED, "int8")]


def test_what_a_model_cannot_be_made_into_is_said():
    small = found(situation("cpu-2core", "gpt-oss-20b"), "int8", "int4")
    assert all("mxfp4" in str(each.refusal) for each in small.tried[1:])
    assert small.chosen is small.tried[0]
    latent = found(situation("cpu-2core", "deepseek-v2-lite"), "kv-int8")
    assert "latent" in str(latent.tried[1].refusal)
    at = situation("cpu-2core")
    rounded = found(replace(at, overrides=Overrides(activations="bf16")), "int8")
    assert "bf16" in str(rounded.tried[1].refusal)
