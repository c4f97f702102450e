"""Plans for any machine: they fit every tier and beat their baselines; refusals say what to do."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import BudgetError, HeadraceError, UsageError
from headrace.planner.baselines import FAMILIES, published
from headrace.planner.candidates import Situation, least_seconds, smallest
from headrace.planner.plan import Overrides, Plan
from headrace.planner.prices import price
from headrace.planner.search import HOST_BASELINES, best_plan
from headrace.planner.sweeps import Load
from headrace.schedule.generate import generate
from headrace.schedule.lifetimes import peak_bytes
from headrace.specs.hardware import (
    CPU_FLOPS,
    D2H,
    DISK,
    DRAM,
    GPU_FLOPS,
    H2D,
    HBM,
    HOST,
    Hardware,
)
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.policy import DEVICE_SCHEDULES
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload
from tools.bench_search import Case, Outcome, cases, run

MODEL = ModelSpec(
    "mixtral", layers=6, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, vocab=1000,
    experts=8, top_k=2,
)  # fmt: skip
PAGES = page_layout(MODEL)
ROOFS = {
    CPU_FLOPS: 2e9, DRAM: 1e9, DISK: 2e7, HOST: 1.0, GPU_FLOPS: 2e11, HBM: 3e9, H2D: 1e8, D2H: 1e8,
}  # fmt: skip
MACHINE = Hardware(
    "toy", ROOFS, {"host": 200_000_000, "device": 24_000_000}, lane_rate=2e7,
    task_seconds=1e-6, row_seconds=1e-6,
)  # fmt: skip
JOB = Workload.uniform(60, 30, 16)


def situation(device=24_000_000, host=200_000_000, job=JOB, roofs=None, **fixed) -> Situation:
    hardware = replace(MACHINE, roofs={**ROOFS, **(roofs or {})})
    overrides = Overrides(**fixed)
    return Situation(MODEL, PAGES, None, hardware, job, host, overrides, device_bytes=device)


def check(at: Situation, plan: Plan) -> None:
    assert plan.memory.fits
    best = min((b.prediction.seconds for b in plan.baselines if b.prediction), default=None)
    assert best is None or plan.prediction.seconds <= best
    for baseline in plan.baselines:
        assert (baseline.policy is None) == bool(baseline.refusal)
    policy = plan.policy
    if policy.on_device:  # the map is what the list of tasks touches
        peaks = peak_bytes([generate(at.model, at.pages, policy)])
        device = plan.memory.tiers["device"]
        assert peaks["device"] <= device.planned_bytes <= device.capacity_bytes
        both = peaks.get("pinned", 0) + peaks.get("host", 0)
        assert both <= plan.memory.tiers["host"].planned_bytes <= at.budget_bytes


@pytest.mark.parametrize(
    ("device", "host"),
    [(24_000_000, 200_000_000), (100_000_000, 200_000_000), (24_000_000, 40_000_000)],
    ids=["streams", "fits", "disk"],
)
def test_a_plan_beside_an_accelerator_fits_and_is_no_slower_than_its_baselines(device, host):
    at = situation(device, host)
    plan = best_plan(at)
    check(at, plan)
    assert [b.name for b in plan.baselines] == list(FAMILIES)
    if device == 100_000_000:
        assert plan.policy.schedule == "resident"


def test_an_accelerator_too_small_for_anything_leaves_the_plan_to_the_processor():
    at = situation(device=2_000_000)
    plan = best_plan(at)
    assert plan.policy.compute == "host"
    assert all("does not fit" in b.refusal for b in plan.baselines)


def test_without_an_accelerator_the_plan_is_that_of_the_rules_with_baselines():
    machine = known_hardware("laptop-nvme").hardware
    model = known_model("olmoe-1b-7b").spec
    at = Situation(model, page_layout(model), None, machine, JOB, 4_000_000_000)
    plan = best_plan(at)
    assert [b.name for b in plan.baselines] == list(HOST_BASELINES)
    assert plan.baselines[0].refusal  # it does not fit
    assert plan.baselines[1].prediction
    assert plan.baselines[1].prediction.seconds >= plan.prediction.seconds


@pytest.mark.parametrize("schedule", DEVICE_SCHEDULES)
def test_a_schedule_that_is_asked_for_is_planned(schedule):
    device = 100_000_000 if schedule == "resident" else 24_000_000
    plan = best_plan(situation(device, schedule=schedule))
    assert plan.policy.schedule == schedule
    assert plan.policy.on_device


def famous(model: str, machine: str, gen: int, **fixed) -> Situation:
    spec, hardware = known_model(model).spec, known_hardware(machine).hardware
    job = Workload.uniform(5000, 77, gen)
    host = int(0.95 * hardware.capacity["host"])
    return Situation(spec, page_layout(spec), None, hardware, job, host, Overrides(**fixed))


@pytest.mark.parametrize(
    ("model", "machine", "gen", "wanted"),
    [
        ("mixtral-8x7b", "t4", 64, (164, 19)),
        ("mixtral-8x7b", "t4", 1000, (100, 15)),
        ("mixtral-8x7b", "l4", 40, (324, 14)),
        ("mixtral-8x22b", "t4x2", 64, (36, 7)),
        ("mixtral-8x22b", "t4x4", 200, (36, 13)),
        ("dbrx", "t4x4", 128, (68, 36)),
        ("mixtral-8x22b", "t4", 64, None),
        ("olmoe-1b-7b", "l4", 64, None),
        ("mixtral-8x7b", "rtx-4090", 64, None),
    ],
)
def test_published_policies_stand_for_their_runtime(model, machine, gen, wanted):
    found = published(famous(model, machine, gen))
    assert (found and (found.mu, found.parts)) == wanted


def test_the_published_policy_is_the_baseline_that_is_priced():
    plan = best_plan(famous("mixtral-8x7b", "l4", 128))
    theirs = next(b for b in plan.baselines if b.name == "moe_lightning")
    assert theirs.policy is not None
    assert (theirs.policy.max_seqs, theirs.policy.micro_batches) == (164 * 16, 16)
    assert theirs.policy.schedule == "cgopipe"
    assert theirs.prediction is not None
    assert theirs.prediction.seconds >= plan.prediction.seconds


def test_experts_that_a_published_policy_keeps_on_the_device_stay_there():
    at = famous("dbrx", "t4x4", 128)
    plan = best_plan(at, ["moe_lightning"])
    policy = plan.baselines[0].policy
    assert policy is not None
    experts = {page.id for page in at.pages if page.expert is not None}
    assert len(experts & policy.resident) == len(experts) // 16
    assert policy.micro_batches == 36


def test_no_published_policy_stands_where_sequences_are_fixed():
    at = famous("mixtral-8x7b", "t4", 64, max_seqs=40)
    assert published(at) is None
    plan = best_plan(at)
    assert plan.policy.max_seqs == 40
    assert all(b.policy.max_seqs == 40 for b in plan.baselines if b.policy)


# -- refusals -----------------------------------------------------------------------------------


def test_a_budget_too_small_names_what_would_do():
    least = situation().map_of(smallest(situation())).total_bytes
    at = situation(device=2_000_000, host=least - 1)
    with pytest.raises(BudgetError) as refusal:
        best_plan(at)
    assert refusal.value.smallest_bytes == least
    assert best_plan(replace(at, budget_bytes=least)).memory.fits
    hint = str(refusal.value.hint)
    tokens = int(hint.split("lines of at most ")[1].split()[0])
    shorter = replace(at, workload=Workload.uniform(3, tokens, 1))
    assert best_plan(shorter).memory.fits
    with pytest.raises(BudgetError):
        best_plan(replace(at, workload=Workload.uniform(3, tokens + 20, 1)))


def test_fewer_sequences_are_named_where_their_number_is_the_reason():
    few = situation(device=2_000_000, max_seqs=8)
    budget = few.map_of(smallest(few)).total_bytes
    with pytest.raises(BudgetError) as refusal:
        best_plan(situation(device=2_000_000, host=budget, max_seqs=40))
    number = int(str(refusal.value.hint).split("--max-num-seqs ")[1].split(",")[0])
    assert 8 <= number < 40
    assert best_plan(situation(device=2_000_000, host=budget, max_seqs=number)).memory.fits


def test_a_schedule_that_does_not_fit_names_the_memory_that_would():
    with pytest.raises(BudgetError) as refusal:
        best_plan(situation(device=2_000_000, schedule="cgopipe"))
    assert "an accelerator with" in str(refusal.value.hint)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UsageError):
        best_plan(situation(schedule="magic"))


# -- more is never worse ------------------------------------------------------------------------

GROWN = st.sampled_from([1.1, 1.5, 3.0])


@pytest.fixture(scope="module")
def streaming():
    return best_plan(situation(schedule="cgopipe")).policy


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ROOFS)), GROWN, st.integers(20, 80))
def test_bounds_are_monotone_in_every_rate(streaming, roof, factor, megabytes):
    slow, fast = situation(host=megabytes * 10**6), situation(
        host=megabytes * 10**6, roofs={roof: ROOFS[roof] * factor}
    )  # fmt: skip
    assert least_seconds(fast) <= least_seconds(slow)
    loads = (Load(40, 40 * 30, samples=40), Load(20, 20 * 30, 60, 30, 22))
    for load in loads:
        bounds = [price(MODEL, PAGES, streaming, at.hardware).bound(load) for at in (slow, fast)]
        assert bounds[1] <= bounds[0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(5, 400), min_size=2, max_size=4).map(sorted))
def test_bounds_are_monotone_in_memory(sizes):
    bounds = [least_seconds(situation(host=n * 10**6)) for n in sizes]
    assert all(more <= less for less, more in pairwise(bounds))


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([*sorted(ROOFS), "device", "host"]), GROWN)
def test_a_better_machine_never_makes_the_plan_slower_by_more_than_a_percent(what, factor):
    before = best_plan(situation())
    if what in ROOFS:
        after = best_plan(situation(roofs={what: ROOFS[what] * factor}))
    else:
        sizes = {"device": 24_000_000, "host": 200_000_000}
        after = best_plan(situation(**{what: int(sizes[what] * factor)}))
    assert after.prediction.seconds <= 1.01 * before.prediction.seconds


# -- the sweep ----------------------------------------------------------------------------------


def judge(outcome: Outcome) -> None:
    if outcome.plan is None:
        assert outcome.refusal
        return
    assert outcome.plan.memory.fits
    assert outcome.behind == 0.0, outcome.case


SUBSET = cases()[:: len(cases()) // 12][:12]


@pytest.mark.parametrize("case", SUBSET, ids=lambda c: f"{c.model}-{c.machine}-{c.job}")
def test_plans_of_registered_models_fit_and_are_behind_no_baseline(case):
    judge(run(case))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_case_of_the_sweep_is_planned_or_refused_with_a_reason():
    assert len(cases()) >= 200
    for case in cases():
        judge(run(case))


def test_a_refusal_is_an_outcome_with_its_reason():
    case = Case("mixtral-8x7b", "cpu-2core", "batch", 0.01)
    outcome = run(case)
    assert outcome.plan is None
    assert "--memory" in outcome.refusal
    assert issubclass(BudgetError, HeadraceError)
