"""A stored plan is data: kept when it is one of ours, and made anew when it is anything else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headrace.planner.candidates import Situation, smallest
from headrace.planner.plan import Overrides
from headrace.planner.rules import best_plan
from headrace.planner.stored import NOTE, restore_plan, store_plan
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload


@pytest.fixture(scope="module")
def at() -> Situation:
    """A model that streams."""
    model = known_model("olmoe-1b-7b").spec
    hardware = known_hardware("cpu-2core").hardware
    job = Workload.uniform(16, 64, 32)
    nothing = Situation(model, page_layout(model), None, hardware, job, 0, Overrides())
    return replace(nothing, budget_bytes=nothing.map_of(smallest(nothing)).total_bytes * 2)


@pytest.fixture(scope="module")
def stored(at):
    return json.loads(json.dumps(store_plan(best_plan(at), at, 7)))


def test_a_plan_of_ours_is_kept(at, stored):
    kept = restore_plan(stored, at, 7)
    assert kept is not None
    assert kept.notes[-1] == NOTE
    assert kept.policy == best_plan(at).policy
    assert kept.policy.slot_bytes, "it streams"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_rows", 10**9),
        ("max_rows", "64"),
        ("max_seqs", -1),
        ("max_seqs", True),
        ("max_seqs", 1.5),
        ("micro_batches", 10**6),
        ("disk_lanes", 10**5),
        ("disk_lanes", 0),
        ("threads", 400),
        ("chunk", 1),
        ("kv_blocks", 10**13),
        ("kv_blocks", 0),
        ("kv_block", 1 << 30),
        ("kv_dtype", "f32"),
        ("kernels", "reference"),
        ("schedule", "resident"),
        ("schedule", "../../etc"),
        ("ring_slots", 0),
        ("ring_slots", 10**12),
        ("slot_bytes", 1),
        ("resident", []),
        ("resident", [10**9]),
        ("resident", ["0"]),
        ("resident", "all"),
        ("resident", [[]]),
        ("unheard_of", 1),
    ],
)
def test_a_field_that_we_would_not_have_written_is_not_believed(at, stored, name, value):
    changed = {**stored, "policy": {**stored["policy"], name: value}}
    assert restore_plan(changed, at, 7) is None


@pytest.mark.parametrize(
    "change",
    [
        {"policy": []},
        {"policy": None},
        {"on_demand_rows": -1},
        {"on_demand_rows": "many"},
        {"requests": float("inf")},
        {"memory": 8},
        {"overrides": "none"},
    ],
)
def test_a_plan_that_is_none_is_made_anew(at, stored, change):
    assert restore_plan({**stored, **change}, at, 7) is None


def test_a_missing_field_is_not_guessed(at, stored):
    policy = {k: v for k, v in stored["policy"].items() if k != "ring_slots"}
    assert restore_plan({**stored, "policy": policy}, at, 7) is None


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "smollm2-135m"])
def test_plans_of_large_models_are_kept_when_stored(name):
    model, machine = known_model(name).spec, known_hardware("cloud-24core").hardware
    job = Workload.uniform(1000, 256, 128)
    at = Situation(model, page_layout(model), None, machine, job, 160_000_000_000)
    plan = best_plan(at)
    kept = restore_plan(json.loads(json.dumps(store_plan(plan, at, None))), at, None)
    assert kept is not None
    assert kept.policy == plan.policy
