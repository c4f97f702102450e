"""Amounts of work, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import UsageError
from headrace.schedule.binding import Attention, Binding, Extent
from headrace.schedule.generate import generate
from headrace.schedule.routing import CORRELATED, expected_distinct
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work, alone
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.model import Mla, ModelSpec, SharedExpert
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy

MODEL = ModelSpec("toy", 1, 64, 4, 2, 16, 96, 100, experts=4, top_k=2)
PAGES = page_layout(MODEL)
POLICY = Policy("stream", max_rows=32, max_seqs=8, micro_batches=2, ring_slots=3, kv_blocks=5)
BINDING = Binding(
    extents=((Extent(1, 10), Extent(4, 6)), (Extent(1, 20),)),
    samples=(1, 1),
    routed={0: (3, 0, 5, 4)},
)
RATES = Hardware("test", {CPU_FLOPS: 1e6, DRAM: 1e6, DISK: 1e4}, lane_rate=5e3)


def works(op: Op, policy: Policy = POLICY, binding: Binding = BINDING) -> list[Work]:
    schedule = generate(MODEL, PAGES, policy)
    model = WorkModel(MODEL, PAGES, policy)
    return [model.work(task, binding) for task in schedule.tasks if task.op is op]


def flops(op: Op) -> list[float]:
    return [work.amounts.get(CPU_FLOPS, 0) for work in works(op)]


def test_products_are_two_flops_per_row_and_weight() -> None:
    assert flops(Op.PRE_ATTN) == [2 * m * 64 * (64 + 2 * 32) for m in (5, 1)]
    assert flops(Op.POST_ATTN) == [2 * m * 64 * 64 for m in (5, 1)]
    assert flops(Op.ROUTER) == [2 * m * 64 * 4 for m in (5, 1)]
    assert flops(Op.EXPERT) == [2 * r * 3 * 64 * 96 for r in (3, 0, 5, 4)]
    assert flops(Op.LOGITS) == [2 * 2 * 64 * 100]


def test_attention_counts_pairs_and_reads_each_sequence_once() -> None:
    """Rows of a chunk of 4 behind 2 tokens see 3, 4, 5 and 6."""
    first = works(Op.ATTN)[0]
    assert first.amounts[CPU_FLOPS] == 4 * 64 * (10 + 3 + 4 + 5 + 6)
    assert first.amounts[DRAM] == (10 + 6) * 2 * 32 * 2 + 2 * 5 * 64 * 4


def test_decodes_and_prompts_of_one_task_are_each_as_quick_as_they_are() -> None:
    mixed, decodes = works(Op.ATTN)
    assert [part.rows for part in mixed.parts] == [1.0, (3 + 4 + 5 + 6) / 6]
    for roof, amount in mixed.amounts.items():
        assert amount == sum(part.amounts[roof] for part in mixed.parts)
    assert decodes.parts == (), "of one kind"
    quick = replace(RATES, efficiency={"attn": ((1.0, 1.0), (3.0, 0.1))})
    found = alone(mixed, quick, "attn")
    first, second = (max(part.seconds(quick).values()) for part in mixed.parts)
    assert found.seconds == pytest.approx(first + second / 0.1)
    assert found.roofs[CPU_FLOPS] == pytest.approx(4 * 64 * (10 + 18 / 0.1) / 1e6)
    whole = alone(mixed._replace(parts=()), quick, "attn")
    assert whole.seconds == max(whole.roofs.values()) != found.seconds
    one = alone(decodes, quick, "attn")
    assert one.roofs == decodes.seconds(quick)


def test_a_device_counts_a_task_of_attention_as_one() -> None:
    model = WorkModel(MODEL, PAGES, replace(POLICY, schedule="cgopipe", compute="device"))
    task = Task(Op.ATTN, "cpu", (), (), layer=0, mb=0)
    assert model.work(task, BINDING).parts == ()


def test_a_window_bounds_what_a_row_sees() -> None:
    assert BINDING.attention(0, window=4) == Attention(4 + (3 + 4 + 4 + 4), 4 + 6, 1)
    assert BINDING.attention(0, window=2) == Attention(2 + 4 * 2, 2 + 5, 1)
    assert BINDING.attention(0) == BINDING.attention(0, window=99)
    assert BINDING.attention(7) == Attention(0, 0)


def test_sums_follow_the_extents() -> None:
    binding = replace(BINDING)
    assert (binding.rows, binding.mb_rows(0), binding.mb_rows(9)) == (6, 5, 0)
    binding.extents = ((Extent(2, 2),),)
    assert (binding.rows, binding.mb_rows(0)) == (2, 2)


def test_an_expert_without_rows_costs_nothing() -> None:
    idle = works(Op.EXPERT)[1]
    assert not any(idle.amounts.values())


def test_reads_draw_on_the_disk_their_lane_and_memory() -> None:
    amounts = works(Op.READ_PAGE)[1].amounts
    assert amounts == {DISK: PAGES[2].bytes, "lane:disk1": PAGES[2].bytes, DRAM: PAGES[2].bytes}
    moved = works(Op.READ_PAGE, binding=replace(BINDING, page_bytes={2: 99}))[1]
    assert moved.amounts[DISK] == 99


def test_on_demand_reads_count_only_if_routed_or_by_chance() -> None:
    policy = replace(POLICY, schedule="on_demand")
    known = [w.amounts[DISK] for w in works(Op.READ_PAGE, policy)][1:5]
    assert known == [PAGES[2].bytes, 0, PAGES[4].bytes, PAGES[5].bytes]
    unknown = works(Op.READ_PAGE, policy, replace(BINDING, routed={}))[1]
    assert unknown.amounts[DISK] == pytest.approx(PAGES[2].bytes * (1 - 0.5**6))


@pytest.mark.parametrize(
    ("schedule", "reads"), [("stream", [1, 1]), ("one_by_one", [1, 1]), ("on_demand", [1, 0])]
)
def test_what_nobody_visits_has_no_chance_to_be_done(schedule: str, reads: list[float]) -> None:
    policy = replace(POLICY, schedule=schedule)
    assert [work.chance for work in works(Op.EXPERT, policy)][:4] == [1, 0, 1, 1]
    assert [work.chance for work in works(Op.READ_PAGE, policy)][1:3] == reads
    unknown = replace(BINDING, routed={})
    each = 1 - 0.5**6
    assert works(Op.EXPERT, policy, unknown)[0].chance == pytest.approx(each)
    known, read = works(Op.READ_PAGE, policy, unknown)[:2]
    assert (known.chance, read.chance) == (1, pytest.approx(each if reads[1] == 0 else 1))
    assert all(work.chance == 1 for work in works(Op.ROUTER, policy))


def test_under_another_schedule_the_same_policy_reads_otherwise() -> None:
    model = WorkModel(MODEL, PAGES, POLICY)
    assert model.under("stream") is model
    page = next(page for page in PAGES if page.expert is not None)
    task = Task(Op.READ_PAGE, "disk0", (), (), page=page.id, layer=page.layer, expert=page.expert)
    few = Binding(((Extent(1, 1),), ()))
    demand = model.under("on_demand")
    assert demand.work(task, few).amounts[DISK] < model.work(task, few).amounts[DISK]
    assert demand.under("stream").work(task, few) == model.work(task, few)


def test_each_sequence_that_decodes_costs_attention_something() -> None:
    machine = replace(RATES, attended_seconds=3.0)
    policy = replace(POLICY, micro_batches=1)
    (alike,) = works(Op.ATTN, policy, Binding(((Extent(1, 9),) * 4,)))
    (both,) = works(Op.ATTN, policy, Binding(((Extent(1, 9), Extent(4, 6)),)))
    for work, count in ((alike, 4), (both, 1)):
        free = alone(work, RATES, "attn")
        assert alone(work, machine, "attn").seconds == pytest.approx(free.seconds + 3.0 * count)
    assert alike.times(2).sequences == 8


def test_embedding_rows_are_read_in_whole_blocks() -> None:
    (work,) = works(Op.READ_ROWS)
    assert work.amounts[DISK] == 6 * 2 * 4096
    assert work.amounts["lane:rows"] == work.amounts[DISK]


def test_one_moe_task_costs_what_its_experts_cost() -> None:
    resident = replace(POLICY, schedule="resident", resident=frozenset(p.id for p in PAGES))
    (moe,) = works(Op.MOE, resident)
    experts = works(Op.EXPERT)
    for roof in (CPU_FLOPS, DRAM):
        assert moe.amounts[roof] == sum(expert.amounts[roof] for expert in experts)


def test_a_shared_expert_is_multiplied_with_every_row_and_a_dense_layer_has_no_router() -> None:
    model = replace(
        MODEL, layers=2, shared=SharedExpert(48, gated=True), dense_layers=1, dense_width=200
    )
    pages = page_layout(model)
    schedule, work = generate(model, pages, POLICY), WorkModel(model, pages, POLICY)
    binding = replace(BINDING, routed={1: (3, 0, 5, 4)})
    found = [
        (t.layer, t.expert, work.work(t, binding)) for t in schedule.tasks if t.expert is not None
    ]
    counted = {
        (expert, layer): each.amounts[CPU_FLOPS]
        for layer, expert, each in found
        if each.amounts.get(CPU_FLOPS)
    }
    assert counted[0, 0] == 2 * 6 * 3 * 64 * 200
    assert counted[2, 1] == 2 * 5 * 3 * 64 * 96
    assert counted[4, 1] == 2 * 6 * 3 * 64 * 48
    routers = [t.layer for t in schedule.tasks if t.op is Op.ROUTER]
    assert routers == [1, 1]


def test_experts_in_few_bits_move_fewer_bytes() -> None:
    model = replace(MODEL, expert_dtype="mxfp4")
    pages = page_layout(model)
    assert pages[2].bytes == 3 * 64 * 96 * 4.25 / 8
    work = WorkModel(model, pages, POLICY)
    task = next(t for t in generate(model, pages, POLICY).tasks if t.op is Op.EXPERT)
    moved = work.work(task, BINDING).amounts[DRAM]
    assert moved == pages[2].bytes + 3 * 3 * 64 * 4


def test_latent_attention_reads_one_vector_per_token_and_takes_the_cheaper_form() -> None:
    model = replace(MODEL, kv_heads=4, mla=Mla(32, 8, nope_dim=16, v_dim=16))
    work = WorkModel(model, page_layout(model), POLICY)
    decode = Binding(((Extent(1, 100),),))
    attn = work.work(Task(Op.ATTN, "cpu", (), (), layer=0, mb=0), decode)
    assert attn.amounts[CPU_FLOPS] == 2 * 4 * 100 * (40 + 32)  # in the latent space
    assert attn.amounts[DRAM] == 100 * 40 * 2 + (4 * 24 + 4 * 16) * 4
    prefill = Binding(((Extent(100, 100),),))
    attn = work.work(Task(Op.ATTN, "cpu", (), (), layer=0, mb=0), prefill)
    assert attn.amounts[CPU_FLOPS] == 2 * 4 * 5050 * (24 + 16)  # expanded once, by projection
    products = sum(
        work.work(Task(op, "cpu", (), (), layer=0, mb=0, page=1), decode).amounts[CPU_FLOPS]
        for op in (Op.PRE_ATTN, Op.POST_ATTN)
    )
    matrices = [s for s in model.layer_tensors().values() if len(s) == 2 and s[0] != 4]
    assert products == 2 * sum(a * b for a, b in matrices)


def test_without_causality_every_row_sees_every_token() -> None:
    assert Binding(((Extent(4, 9),),)).attention(0, causal=False) == Attention(36, 9)
    assert Binding(((Extent(4, 9),),)).cached_tokens(0) == 5


def test_windows_may_hold_in_every_other_layer_only() -> None:
    model = replace(MODEL, layers=2, sliding_window=4, window_every=2)
    work = WorkModel(model, page_layout(model), POLICY)
    decode = Binding(((Extent(1, 100),),))
    flops = [
        work.work(Task(Op.ATTN, "cpu", (), (), layer=layer, mb=0), decode).amounts[CPU_FLOPS]
        for layer in (0, 1)
    ]
    assert flops == [4 * 4 * 64, 4 * 100 * 64]


def test_tokens_visit_distinct_experts_fewer_when_they_are_alike() -> None:
    assert expected_distinct(8, 2, 0) == 0
    assert expected_distinct(8, 2, 1) == pytest.approx(2)
    assert expected_distinct(8, 2, 4) == pytest.approx(8 * (1 - 0.75**4))
    assert expected_distinct(8, 2, 4, CORRELATED) == pytest.approx(8 * (1 - 0.75 ** (4**0.65)))
    policy = replace(POLICY, schedule="on_demand")
    task = next(t for t in generate(MODEL, PAGES, policy).tasks if t.expert == 0)
    moved = [
        WorkModel(MODEL, PAGES, policy, exponent).work(task, replace(BINDING, routed={}))
        for exponent in (1.0, CORRELATED)
    ]
    assert moved[1].amounts[DISK] == pytest.approx(PAGES[2].bytes * (1 - 0.5 ** (6**0.65)))
    assert moved[1].amounts[DISK] < moved[0].amounts[DISK]


def test_host_work_is_binding_sampling_and_text() -> None:
    costs = replace(RATES, row_seconds=0.5, token_seconds=0.25, sequence_seconds=2.0)
    (bind,), (sample,), (commit,) = works(Op.BIND), works(Op.SAMPLE), works(Op.COMMIT)
    assert list(bind.seconds(costs).values()) == [3 * 2.0]
    assert sample.seconds(costs)[HOST] == 2 * 0.5
    assert list(commit.seconds(costs).values()) == [2 * 0.25]
    assert not any(commit.seconds(RATES).values())


def test_sampling_is_host_work_per_row() -> None:
    (sample,) = works(Op.SAMPLE)
    assert sample.amounts[HOST] == 2
    assert sample.seconds(replace(RATES, row_seconds=0.5))[HOST] == 1.0
    assert HOST in sample.amounts
    assert sample.seconds(replace(RATES, row_seconds=0.0))[HOST] == 0.0


def test_an_empty_sweep_costs_only_what_streams() -> None:
    model = WorkModel(MODEL, PAGES, POLICY)
    total = model.sweep_work(generate(MODEL, PAGES, POLICY), Binding())
    assert total[DISK] == sum(p.bytes for p in PAGES if p.role not in ("embed", "final"))
    assert not total.get(CPU_FLOPS)


def test_the_bound_is_the_busiest_roof_or_lane() -> None:
    schedule, model = generate(MODEL, PAGES, POLICY), WorkModel(MODEL, PAGES, POLICY)
    moved = model.sweep_work(schedule, BINDING)[DISK]
    assert model.bound_seconds(schedule, [BINDING] * 2, RATES) == pytest.approx(2 * moved / 1e4)
    slow_lanes = replace(RATES, lane_rate=100.0)
    lanes = [0.0, 0.0]
    for index, page in enumerate(p for p in PAGES if p.role not in ("embed", "final")):
        lanes[index % 2] += page.bytes / 100.0
    rows = 6 * 2 * 4096 / 100.0
    assert model.bound_seconds(schedule, [BINDING], slow_lanes) == max(*lanes, rows)
    assert model.bound_seconds(schedule, [], RATES) == 0.0


def test_a_roof_without_a_rate_is_refused() -> None:
    work = Work({CPU_FLOPS: 1.0}, 1)
    with pytest.raises(UsageError, match="cpu_flops"):
        work.seconds(Hardware("blank", {}))


def test_every_op_has_a_formula() -> None:
    model = WorkModel(MODEL, PAGES, POLICY)
    for op in Op:
        model.work(Task(op, "cpu", (), (), layer=0, mb=0, page=2, expert=0), BINDING)
