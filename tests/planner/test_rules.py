"""Plans: they fit to the byte, refuse exactly what cannot work, and choose sensibly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from headrace.errors import BudgetError, UsageError
from headrace.memory.arena import Arena
from headrace.planner.memory_map import arena_bytes, memory_map
from headrace.planner.plan import Overrides
from headrace.planner.rules import make_plan
from headrace.schedule.generate import generate
from headrace.schedule.placement import streamed_pages
from headrace.schedule.sizes import buffer_sizes
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.workload import Workload

MODEL = ModelSpec(
    "mixtral", layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, vocab=1000,
    experts=8, top_k=2, weight_dtype="bf16",
)  # fmt: skip
PAGES = page_layout(MODEL)
MACHINE = Hardware(
    "toy",
    {CPU_FLOPS: 10e9, DRAM: 10e9, DISK: 50e6, HOST: 1.0},
    lane_rate=40e6,
    task_seconds=1e-6,
    row_seconds=1e-6,
    measured=True,
)
FREE = Overrides()
JOB = Workload.uniform(40, 20, 12)
ROOMY = 200_000_000


def plan(budget=ROOMY, job=JOB, overrides=FREE, **changes):
    fields = {"model": MODEL, "pages": PAGES, "page_bytes": None, "hardware": MACHINE} | changes
    return make_plan(**fields, workload=job, budget_bytes=budget, overrides=overrides)


def smallest(**kwargs) -> int:
    with pytest.raises(BudgetError) as refusal:
        plan(budget=1, **kwargs)
    return refusal.value.smallest_bytes


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([50_000, 200_000, 10**8]),
    st.sampled_from([Overrides(), Overrides(max_seqs=5, kv_dtype="f32"), Overrides(ring_slots=5)]),
    st.booleans(),
)
def test_the_smallest_budget_is_accepted_and_one_byte_less_is_not(cut, overrides, tied):
    model = replace(MODEL, tied_embeddings=tied)
    kwargs = {"model": model, "pages": page_layout(model, cut), "overrides": overrides}
    least = smallest(**kwargs)
    assert plan(budget=least, **kwargs).memory.total_bytes <= least
    with pytest.raises(BudgetError, match="at least") as refusal:
        plan(budget=least - 1, **kwargs)
    assert refusal.value.smallest_bytes == least


@settings(max_examples=12, deadline=None)
@given(st.floats(0, 1))
def test_the_memory_map_is_what_an_arena_hands_out_and_fits_the_budget(share):
    least = smallest()
    budget = int(least + share * (40_000_000 - least))
    made = plan(budget=budget)
    sizes = buffer_sizes(MODEL, PAGES, made.policy)
    host = [size.bytes for size in sizes.values() if size.tier == "host"]
    assert made.memory.arena_bytes == sum(map(arena_bytes, host))
    assert made.memory.total_bytes <= budget
    assert made.memory.budget_bytes == budget
    assert sum(made.memory.parts.values()) + made.memory.margin_bytes == made.memory.total_bytes
    with Arena("host", made.memory.arena_bytes) as arena:
        for buffer, size in sizes.items():
            if size.tier == "host":
                arena.take(str(buffer), size.bytes)
        assert arena.used == made.memory.arena_bytes
    assert dict(made.memory.lines()).keys() >= {"ring", "kv cache", "margin", "budget"}
    schedule = generate(MODEL, PAGES, made.policy)
    assert schedule.sizes.items() <= sizes.items()


def test_everything_stays_resident_when_it_fits():
    made = plan()
    assert made.policy.schedule == "resident"
    assert made.policy.resident == {p.id for p in PAGES}
    assert made.bound_by == "cpu"
    assert made.prediction.bytes_read == 0
    assert made.on_demand_rows == 0


def test_a_tight_budget_streams_with_shared_pages_resident_and_covers_the_tail():
    least, everything = smallest(), memory_map(MODEL, PAGES, plan().policy).total_bytes
    made = plan(budget=(least + everything) // 2)
    assert made.policy.schedule == "stream"
    assert made.policy.ring_slots >= 3
    shared = {p.id for p in PAGES if p.role in (Role.LAYER, Role.FINAL, Role.HEAD)}
    assert shared <= made.policy.resident
    assert made.bound_by == "disk"
    assert any("resident" in note for note in made.notes)
    assert made.prediction.low < made.prediction.seconds < made.prediction.high


@pytest.mark.parametrize("budget", [63_000_000, 69_000_000, 81_000_000])
def test_rings_go_round_evenly_where_that_costs_next_to_nothing(budget):
    """Then all sweeps have the same list."""
    model = replace(MODEL, experts=64, top_k=8, hidden=128, ffn_width=256, vocab=100_000)
    pages = page_layout(model)
    made = plan(budget=budget, model=model, pages=pages)
    streamed = len(streamed_pages(pages, made.policy))
    assert made.policy.ring_slots > 3
    assert streamed % made.policy.ring_slots == 0
    assert made.memory.total_bytes <= budget
    asked = plan(budget=budget, model=model, pages=pages, overrides=Overrides(ring_slots=7))
    assert asked.policy.ring_slots == 7


def test_one_short_request_reads_routed_experts_only():
    job = Workload.uniform(1, 4, 200)
    made = plan(budget=smallest(job=job) + 1_000_000, job=job)
    assert made.policy.schedule == "on_demand"
    assert made.on_demand_rows >= 1
    assert made.schedule_for(1) == "on_demand"
    assert made.schedule_for(made.on_demand_rows + 1) == "stream"


def test_a_schedule_asked_for_is_kept_whatever_the_rows():
    made = plan(budget=smallest() + 1_000_000, overrides=Overrides(schedule="stream"))
    assert [made.schedule_for(rows) for rows in (1, 1000)] == ["stream", "stream"]
    assert plan().schedule_for(1) == "resident"


def test_prefill_is_limited_to_what_hides_behind_the_disk():
    slow_disk = replace(MACHINE, roofs={**MACHINE.roofs, DISK: 5e6}, lane_rate=4e6)
    budget = smallest() + 3_000_000
    assert (
        plan(budget=budget).policy.compute_rows
        <= plan(budget=budget, hardware=slow_disk).policy.compute_rows
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3_000_000))
def test_every_request_of_the_job_is_accepted_by_the_batcher_of_the_plan(extra):
    job = Workload.guessed((3, 300, 17), (50, 100, 9))
    made = plan(budget=smallest(job=job) + extra, job=job)
    batcher = Batcher(Limits.of(made.policy))
    for prompt, most in zip(job.prompt_lens, job.limits, strict=True):
        batcher.add(Request("r", range(prompt), most))
    assert made.prediction.assumed


def test_overrides_are_honoured_or_refused():
    fixed = Overrides(max_seqs=7, max_rows=71, ring_slots=4, disk_lanes=3, micro_batches=2)
    policy = plan(budget=smallest(overrides=fixed) + 500_000, overrides=fixed).policy
    assert (policy.max_seqs, policy.max_rows, policy.ring_slots) == (7, 71, 4)
    assert (policy.disk_lanes, policy.micro_batches) == (3, 2)
    assert plan(overrides=Overrides(schedule="one_by_one")).policy.schedule == "one_by_one"
    for impossible in (
        Overrides(max_seqs=9, max_rows=8),
        Overrides(ring_slots=1),
        Overrides(kv_blocks=1),
        Overrides(schedule="psychic"),
    ):
        with pytest.raises(UsageError):
            plan(overrides=impossible)


def test_resident_on_request_needs_room_for_everything():
    least = smallest(overrides=Overrides(schedule="resident"))
    assert least > 2 * MODEL.parameters()
    assert plan(budget=least, overrides=Overrides(schedule="resident")).memory.spare_bytes == 0


def test_dense_models_are_planned_too():
    dense = replace(MODEL, experts=1, top_k=1)
    pages = page_layout(dense, 100_000)
    made = plan(model=dense, pages=pages, budget=smallest(model=dense, pages=pages) + 100_000)
    assert made.policy.schedule == "stream"
    assert made.on_demand_rows == 0


def test_planned_pages_are_no_larger_than_what_cannot_be_cut():
    large = replace(MODEL, vocab=100_000, ffn_width=8192, hidden=1024)
    pages = page_layout(large)
    largest_inner = max(p.bytes for p in pages if p.layer is not None)
    assert max(p.bytes for p in pages) <= max(largest_inner, 8_000_000)


def test_spare_memory_of_a_resident_model_holds_requests_at_their_limits():
    job = Workload.guessed((20,) * 8, (100,) * 8)
    made = plan(job=job)
    blocks = sum(-(-(20 + 100 - 1) // 16) for _ in range(8))
    assert made.policy.kv_blocks >= min(blocks, made.policy.max_seqs * 8)


def test_page_bytes_of_the_page_table_are_used():
    exact = {p.id: p.bytes + 4096 * 50 for p in PAGES}
    assert smallest(page_bytes=exact) > smallest()
