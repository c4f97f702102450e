"""A plan file is data: followed as it stands, or refused with what it should have been."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headrace.errors import DocumentError
from headrace.planner.candidates import Situation, smallest
from headrace.planner.plan import Overrides
from headrace.planner.plan_file import (
    follow,
    layout_key,
    plan_document,
    policy_document,
    prediction_document,
    read_plan,
)
from headrace.planner.rules import best_plan
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload


@pytest.fixture(scope="module")
def at() -> Situation:
    """A model that streams."""
    model = replace(known_model("olmoe-1b-7b").spec, layers=2, experts=8, top_k=2)
    hardware = known_hardware("cpu-2core").hardware
    job = Workload.uniform(16, 64, 32)
    nothing = Situation(model, page_layout(model), None, hardware, job, 0, Overrides(threads=2))
    return replace(nothing, budget_bytes=nothing.map_of(smallest(nothing)).total_bytes * 2)


@pytest.fixture(scope="module")
def plan(at):
    return best_plan(at)


@pytest.fixture
def document(plan, at):
    return json.loads(json.dumps(plan_document(plan, at, "olmoe", "stock figures")))


def test_a_plan_is_followed_as_it_stands(at, plan, document):
    found = follow(read_plan(document, "p.yaml"), at, "p.yaml")
    assert found.policy == plan.policy
    assert found.on_demand_rows == plan.on_demand_rows
    assert found.prediction == plan.prediction
    assert found.memory == plan.memory
    assert found.policy.slot_bytes, "it streams"


def test_an_edited_choice_is_followed(at, document):
    document["policy"]["max_seqs"] = 2
    found = follow(read_plan(document, "p.yaml"), at, "p.yaml")
    assert found.policy.max_seqs == 2
    assert found.prediction.seconds > 0


def test_sections_for_people_may_be_left_out(at, plan, document):
    least = {key: document[key] for key in ("kind", "format", "model", "policy")}
    assert follow(read_plan(least, "p.yaml"), at, "p.yaml").policy == plan.policy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_rows", 10**9),
        ("max_rows", "64"),
        ("max_rows", 0),
        ("max_seqs", -1),
        ("max_seqs", True),
        ("max_seqs", 1.5),
        ("max_seqs", 10**5),
        ("micro_batches", 10**6),
        ("disk_lanes", 10**5),
        ("threads", 0),
        ("threads", 10**6),
        ("kv_blocks", 10**13),
        ("kv_block", 1 << 30),
        ("ring_slots", 1 << 20),
        ("stage_slots", 1 << 20),
        ("kv_dtype", "f4"),
        ("kernels", "../x"),
        ("schedule", "resident "),
        ("schedule", None),
        ("compute", "moon"),
        ("kv_on_device", 0.5),
        ("pageable", "no"),
        ("on_disk", "1"),
        ("resident", [1]),
        ("resident", "0-99999"),
        ("unheard_of", 1),
    ],
)
def test_a_field_out_of_range_is_refused(document, name, value):
    document["policy"][name] = value
    with pytest.raises(DocumentError):
        read_plan(document, "p.yaml")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("resident", "", "final norm"),
        ("slot_bytes", 4096, "slot_bytes"),
        ("ring_slots", 1, "ring_slots"),
        ("kv_blocks", 1, "longest request"),
        ("max_rows", 1 << 20, "more host memory than there is"),
    ],
)
def test_what_this_model_and_memory_cannot_honour_is_refused(at, document, name, value, said):
    document["policy"][name] = value
    with pytest.raises(DocumentError, match=said) as refused:
        follow(read_plan(document, "p.yaml"), at, "p.yaml")
    assert refused.value.expected is not None


def test_a_schedule_that_streams_nothing_needs_every_page(at, document):
    document["policy"] |= {"schedule": "resident"}
    document["on_demand_rows"] = 0
    with pytest.raises(DocumentError, match="every page resident"):
        follow(read_plan(document, "p.yaml"), at, "p.yaml")


def test_another_model_is_refused(at, document):
    other = replace(at.model, layers=at.model.layers - 1)
    elsewhere = replace(at, model=other, pages=page_layout(other))
    with pytest.raises(DocumentError, match="another model"):
        follow(read_plan(document, "p.yaml"), elsewhere, "p.yaml")


def test_formats_and_shapes_tell_models_apart():
    spec = known_model("olmoe-1b-7b").spec
    keys = {
        layout_key(m, page_layout(m))
        for m in (spec, replace(spec, weight_dtype="f32"), replace(spec, experts=32))
    }
    assert len(keys) == 3


def test_a_device_plan_needs_a_device(at, document):
    document["policy"] |= {"compute": "device", "schedule": "cgopipe"}
    document["on_demand_rows"] = 0
    with pytest.raises(DocumentError, match="accelerator"):
        follow(read_plan(document, "p.yaml"), at, "p.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "recipe"},
        {"format": 2},
        {"model": None},
        {"model": {"pages": 10**9, "layout": "x"}},
        {"model": {"pages": -1}},
        {"policy": None},
        {"policy": []},
        {"policy": {"schedule": "stream"}},
        {"on_demand_rows": -1},
        {"on_demand_rows": 10**9},
        {"surprise": 1},
    ],
)
def test_what_is_no_plan_is_refused(document, change):
    with pytest.raises(DocumentError):
        read_plan({**document, **change}, "p.yaml")
    with pytest.raises(DocumentError):
        read_plan([document], "p.yaml")


def test_threads_left_out_are_all_cores(plan, at):
    open_ended = plan_document(plan, at, "olmoe", "", any_threads=True)
    asked = read_plan(open_ended, "p.yaml")
    assert asked.threads(7, "p.yaml") == 7
    fixed = read_plan(plan_document(plan, at, "olmoe", ""), "p.yaml")
    assert fixed.threads(2, "p.yaml") == 2
    with pytest.raises(DocumentError, match="threads"):
        fixed.threads(1, "p.yaml")


def test_figures_say_what_bounds_and_by_how_much(plan):
    said = prediction_document(plan)
    lanes = sorted(said["lanes"].values(), reverse=True)
    assert said["lanes"][said["bound_by"]] == lanes[0]
    assert said["next"]["share"] == pytest.approx(lanes[1] / lanes[0])
    assert said["tokens_per_second"] * said["job_seconds"] == pytest.approx(16 * 32)
    assert said["interval"][0] <= said["job_seconds"] <= said["interval"][1]


def test_a_policy_is_written_whole(plan):
    written = policy_document(plan.policy)
    assert set(written) == set(vars(plan.policy))
    assert isinstance(written["resident"], str)
