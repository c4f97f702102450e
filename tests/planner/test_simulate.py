"""Simulated jobs: the sweeps a batcher really makes, at the times the virtual machine says."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from headrace.planner.host_sketch import HostSketch
from headrace.planner.played import PlayedOverlap, SteadyPlay
from headrace.planner.prices import DevicePrices, price
from headrace.planner.residency import Residency
from headrace.planner.simulate import FewRows, predict, simulate
from headrace.planner.stalls import together
from headrace.planner.sweeps import Load, SweepTimes
from headrace.planner.tail import on_demand_rows
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate
from headrace.schedule.tally import Kinds
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload

MODEL = ModelSpec(
    "mixtral", layers=3, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn_width=256, vocab=500,
    experts=8, top_k=2,
)  # fmt: skip
PAGES = page_layout(MODEL)
MACHINE = Hardware(
    "toy", {CPU_FLOPS: 5e9, DRAM: 10e9, DISK: 100e6, HOST: 1.0}, lane_rate=80e6,
    efficiency={"expert": ((1, 0.2), (64, 1.0)), "attn": ((1, 0.5),)},
    task_seconds=1e-6, row_seconds=1e-6, measured=True,
)  # fmt: skip


def policy(schedule="stream", seqs=16, rows=80, micro_batches=1, share=0.4, **fields) -> Policy:
    residency = Residency(MODEL, PAGES)
    total = residency.weight_bytes(residency.everything(), 0)
    resident = residency.fill(int(share * total), 4)
    if schedule == "resident":
        resident = residency.everything()
    return Policy(
        schedule,
        rows,
        seqs,
        micro_batches=micro_batches,
        resident=resident,
        ring_slots=4,
        slot_bytes=residency.slot_bytes(resident),
        kv_blocks=200,
        **fields,
    )


def times(p: Policy, hardware=MACHINE) -> SweepTimes:
    return SweepTimes(MODEL, PAGES, p, hardware)


@pytest.mark.parametrize("schedule", ["stream", "on_demand", "resident", "one_by_one"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("load", [Load(8, 400, samples=8), Load(16, 1600, 48, 48, 17)])
def test_lane_seconds_are_the_sums_of_the_work_model(schedule, micro_batches, load):
    p = policy(schedule, micro_batches=micro_batches)
    work = WorkModel(MODEL, PAGES, p)
    extents = [[] for _ in range(micro_batches)]
    for i in range(load.decodes):
        extents[i % micro_batches].append(Extent(1, load.decode_kv // load.decodes))
    for i in range(micro_batches if load.chunk_rows else 0):
        rows = load.chunk_rows // micro_batches
        extents[i].append(Extent(rows, max(rows, load.chunk_kv)))
    samples = tuple(load.samples // micro_batches for _ in range(micro_batches))
    binding = Binding(tuple(map(tuple, extents)), samples)
    cpu = disk = 0.0
    for task in generate(MODEL, PAGES, p).tasks:
        done = work.work(task, binding)
        share = MACHINE.efficiency_of(task.op.value, done.rows)
        took = max(done.seconds(MACHINE, share).values(), default=0.0)
        if task.op.value.startswith("read"):
            disk += took
        else:
            cpu += took
    lanes = times(p).lanes(load)
    assert lanes.cpu == pytest.approx(cpu, rel=0.15)
    assert lanes.disk == pytest.approx(disk * MACHINE.lane_rate / MACHINE.roofs[DISK], rel=0.02)


@pytest.mark.parametrize("rows", [1, 16, 80])
def test_a_streamed_sweep_takes_its_busiest_lane_and_one_by_one_the_sum(rows):
    load = Load(min(rows, 16), 16 * 50, max(0, rows - 16), 30, min(rows, 16))
    slow = replace(MACHINE, task_seconds=0.0)
    lanes = times(policy(), slow).lanes(load)
    stream = SteadyPlay(MODEL, PAGES, policy(), slow).seconds(load)
    serial = SteadyPlay(MODEL, PAGES, policy("one_by_one"), slow).seconds(load)
    assert 0.95 * lanes.busiest <= stream <= 1.35 * lanes.busiest
    assert serial >= 0.95 * (lanes.cpu + lanes.disk)
    assert stream < serial


def test_overlap_is_played_once_per_row_count_and_never_below_one():
    overlap = PlayedOverlap(MODEL, PAGES, policy("one_by_one"), MACHINE, kv=50)
    assert overlap(1) > 1.01
    assert overlap(1) == overlap(0)
    assert 1 <= overlap(5) <= max(overlap(4), overlap(16))
    assert overlap(80) == overlap(8000)


def test_more_layers_than_are_played_are_extrapolated():
    deep = replace(MODEL, layers=120)
    pages = page_layout(deep)
    residency = Residency(deep, pages)
    half = residency.fill(residency.weight_bytes(residency.everything(), 0) // 2, 4)
    p = replace(policy("one_by_one"), resident=half, slot_bytes=residency.slot_bytes(half))
    ratio = PlayedOverlap(deep, pages, p, MACHINE)(4)
    lanes = SweepTimes(deep, pages, p, MACHINE).lanes(Load(4, 4 * 256, samples=4))
    assert ratio * lanes.busiest == pytest.approx(
        lanes.cpu + lanes.disk * MACHINE.roofs[DISK] / MACHINE.lane_rate, rel=0.1
    )


def test_balanced_rows_are_where_arithmetic_meets_the_disk():
    t = times(policy())
    n = t.balanced_rows()
    assert 1 < n < 8192
    below, above = (t.lanes(Load(r, samples=r // 2)) for r in (n - 1, n + 1))
    assert below.cpu <= below.disk
    assert above.cpu > above.disk
    assert times(policy("resident")).balanced_rows(77) == 77


jobs = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(jobs, st.integers(1, 6))
def test_a_simulated_job_makes_exactly_the_sweeps_of_the_batcher(lengths, seqs):
    job = Workload(*map(tuple, zip(*lengths, strict=True)), assumed=False)
    p = policy(seqs=seqs, rows=seqs + 20, chunk=8, compute_rows=15)
    got = simulate(FewRows(times(p)), job)
    batcher = Batcher(Limits.of(p))
    for i, (prompt, gen) in enumerate(lengths):
        batcher.add(Request(str(i), range(prompt), gen))
    while batcher.has_work:
        batch = batcher.next_batch()
        batcher.commit(batch, dict.fromkeys(batch.sampled, 0))
    assert got.sweeps == batcher.counters.sweeps
    assert got.seconds * (1 + 1e-9) >= max(got.lanes.values()) > 0
    assert (got.prompt_tokens, got.gen_tokens) == (job.prompt_tokens, job.gen_tokens)


def test_a_slice_of_a_job_takes_the_time_of_the_whole():
    lengths = [(20 + i % 50, 10 + i * 7 % 90) for i in range(1500)]
    job = Workload(*map(tuple, zip(*lengths, strict=True)), assumed=False)
    p = replace(policy(seqs=64, rows=200, compute_rows=128), kv_blocks=64 * 7)
    whole = simulate(FewRows(times(p)), job, steps=10**9)
    thin = simulate(FewRows(times(p)), job, steps=job.gen_tokens // 4)
    assert thin.seconds == pytest.approx(whole.seconds, rel=0.06)
    assert thin.lanes["disk"] == pytest.approx(whole.lanes["disk"], rel=0.06)


def test_the_interval_is_wide_for_guessed_lengths_and_narrow_for_realised_ones():
    job = Workload.guessed((20,) * 30, (40,) * 30)
    before = predict(MODEL, PAGES, policy(), MACHINE, job)
    after = predict(MODEL, PAGES, policy(), MACHINE, job.realised((15,) * 30))
    assert before.assumed
    assert not after.assumed
    assert before.low < 0.7 * before.seconds
    assert before.high > 1.3 * before.seconds
    assert after.low == pytest.approx(0.9 * after.seconds)
    assert before.low < after.seconds < before.high
    stock = predict(
        MODEL, PAGES, policy(), replace(MACHINE, measured=False), job.realised((15,) * 30)
    )
    assert stock.high - stock.low > 1.5 * (after.high - after.low)


def test_a_prediction_counts_with_what_earlier_runs_showed():
    def found(bias: float):
        seen = replace(MACHINE, bias=bias, error=0.1)
        return predict(MODEL, PAGES, policy(), seen, MIXED)

    as_played, longer = found(0.0), found(0.05)
    for name in ("seconds", "low", "high", "prefill_seconds"):
        assert getattr(longer, name) == pytest.approx(math.exp(0.05) * getattr(as_played, name))
    assert longer.first_token.p99 == pytest.approx(math.exp(0.05) * as_played.first_token.p99)
    assert longer.lanes["disk"] == pytest.approx(math.exp(0.05) * as_played.lanes["disk"])
    assert longer.utilisation == pytest.approx(as_played.utilisation)
    assert longer.bound_seconds == as_played.bound_seconds
    assert longer.high == pytest.approx(longer.seconds * math.exp(0.1))


def test_rates_and_rows_per_sweep_follow_from_the_totals():
    job = Workload.uniform(30, 20, 12)
    got = predict(MODEL, PAGES, policy(), MACHINE, job)
    assert got.prefill_tokens_per_second * got.seconds == pytest.approx(600)
    assert got.decode_tokens_per_second * got.seconds == pytest.approx(360)
    assert got.rows_per_sweep * got.sweeps == pytest.approx(960)
    assert got.bound_by in ("cpu", "disk")


def test_phases_first_tokens_and_bytes_add_up():
    job = Workload.uniform(40, 20, 12)
    got = predict(MODEL, PAGES, policy(), MACHINE, job)
    assert 0 < got.prefill_seconds < got.seconds
    assert got.prefill_phase_tokens_per_second * got.prefill_seconds == pytest.approx(800)
    decode_seconds = got.seconds - got.prefill_seconds
    assert got.decode_phase_tokens_per_second * decode_seconds == pytest.approx(480)
    first = got.first_token
    assert 0 < first.p50 <= first.p99 < got.seconds
    assert first.p50 < first.mean * 1.5
    assert got.bytes_moved["disk"] == got.bytes_read > 0
    assert 0 < got.bound_seconds <= got.seconds
    assert max(got.utilisation.values()) <= 1 + 1e-9


def device_policy(**fields) -> Policy:
    held = frozenset(p.id for p in PAGES if p.expert is None)
    return Policy(
        "two_group", 200, 60, micro_batches=2, resident=held, ring_slots=16, slot_bytes=1 << 20,
        kv_blocks=600, compute="device", compute_rows=150, **fields,
    )  # fmt: skip


BESIDE = replace(
    MACHINE, roofs={**MACHINE.roofs, "gpu_flops": 1e11, "hbm": 5e9, "h2d": 2e8, "d2h": 2e8}
)
MIXED = Workload(
    tuple(20 + i % 50 for i in range(300)), tuple(5 + i * 7 % 60 for i in range(300)), assumed=False
)


def test_a_job_beside_a_device_is_played_by_the_same_batcher():
    got = predict(MODEL, PAGES, device_policy(), BESIDE, MIXED)
    assert got.bound_by == "link"
    assert got.lanes.keys() >= {"gpu", "cpu", "link", "d2h", "host"}
    streamed = sum(p.bytes for p in PAGES if p.expert is not None)
    assert got.bytes_moved["h2d"] == pytest.approx(got.sweeps * streamed, rel=0.1)
    slower = predict(MODEL, PAGES, device_policy(pageable=True, stage_slots=2), BESIDE, MIXED)
    assert slower.seconds >= got.seconds
    assert slower.sweeps == got.sweeps


@dataclass
class Exact:
    """A device's times with nothing tabulated."""

    prices: DevicePrices

    def __getattr__(self, name):
        return getattr(self.prices, name)

    def seconds(self, load):
        return self.prices.played(load).steady


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["two_group", "cgopipe", "flexgen"])
def test_a_tabulated_job_takes_what_the_job_played_sweep_by_sweep_takes(schedule):
    p = replace(device_policy(), schedule=schedule)
    prices = price(MODEL, PAGES, p, BESIDE)
    tabulated = simulate(FewRows(prices), MIXED).seconds
    assert tabulated == pytest.approx(simulate(FewRows(Exact(prices)), MIXED).seconds, rel=0.01)


def test_ten_thousand_lines_beside_a_device_are_played_in_seconds():
    model = known_model("mixtral-8x7b").spec
    pages = page_layout(model)
    held = frozenset(p.id for p in pages if p.expert is None)
    p = Policy(
        "two_group", 6000, 2000, micro_batches=2, resident=held, ring_slots=96, slot_bytes=1 << 26,
        kv_blocks=40_000, compute="device",
    )  # fmt: skip
    job = Workload(tuple(20 + i % 400 for i in range(10_000)), (128,) * 10_000, assumed=False)
    before = time.process_time()
    simulate(FewRows(price(model, pages, p, known_hardware("t4").hardware)), job)
    assert time.process_time() - before < 10  # about one, on an idle machine


def test_a_tail_that_reads_on_demand_is_predicted_faster():
    job = Workload((5,) * 4, (5, 5, 5, 400), assumed=False)
    p = policy(seqs=4)
    threshold = on_demand_rows(MODEL, PAGES, p, MACHINE)
    assert threshold >= 1
    plain = predict(MODEL, PAGES, p, MACHINE, job)
    adaptive = predict(MODEL, PAGES, p, MACHINE, job, threshold)
    assert adaptive.seconds < 0.9 * plain.seconds
    assert adaptive.bytes_read < plain.bytes_read


def test_on_demand_never_pays_without_streamed_or_unrouted_experts():
    assert on_demand_rows(MODEL, PAGES, policy("resident"), MACHINE) == 0
    all_experts = replace(MODEL, top_k=8)
    assert on_demand_rows(all_experts, page_layout(all_experts), policy(), MACHINE) == 0
    dense = replace(MODEL, experts=1, top_k=1)
    assert on_demand_rows(dense, page_layout(dense), policy(), MACHINE) == 0


@pytest.mark.parametrize("schedule", ["stream", "on_demand", "one_by_one", "resident"])
def test_what_nobody_visits_costs_what_passing_over_it_does(schedule):
    """The same in every way to price a sweep."""
    p, load = policy(schedule), Load(2, 100, samples=2)
    slow = replace(MACHINE, task_seconds=0.0, passed_seconds=1.0)
    quick = replace(slow, passed_seconds=0.0)
    streamed = sum(1 for page in PAGES if page.expert is not None and page.id not in p.resident)
    experts = 0 if schedule == "resident" else MODEL.layers * MODEL.experts
    reads = streamed if schedule == "on_demand" else 0
    missed = (1 - 2 / 8) ** 2
    summed, least = (SweepTimes(MODEL, PAGES, p, each).lanes(load).cpu for each in (slow, quick))
    assert summed - least == pytest.approx(missed * (experts + reads))
    if schedule == "one_by_one":
        kinds = Kinds(MODEL, PAGES)
        drawn, least = (HostSketch(kinds, p, each).play(load) for each in (slow, quick))
        assert drawn - least == pytest.approx(missed * experts)
    played, least = (SteadyPlay(MODEL, PAGES, p, each).seconds(load) for each in (slow, quick))
    if schedule == "on_demand":  # whole experts are visited, or none
        missed = 1 - round(MODEL.experts * (1 - missed)) / MODEL.experts
        assert missed * experts * 0.8 <= played - least <= missed * (experts + reads) * 1.2
    else:
        assert played - least == pytest.approx(missed * experts, abs=0.5)


def test_on_demand_pays_up_to_its_threshold_and_not_beyond():
    p = policy(rows=400, seqs=300)
    n = on_demand_rows(MODEL, PAGES, p, MACHINE, kv=50)
    assert 1 <= n < 300

    def gain(rows):
        load = Load(rows, rows * 50, samples=rows)
        demand = SteadyPlay(MODEL, PAGES, replace(p, schedule="on_demand"), MACHINE).seconds(load)
        return SteadyPlay(MODEL, PAGES, p, MACHINE).seconds(load) / demand

    assert gain(max(1, n // 2)) > 1
    assert gain(2 * n + 1) < 1.1


def test_on_demand_pays_for_longer_where_reads_and_arithmetic_are_in_each_others_way():
    p = policy(rows=400, seqs=300)
    apart, beside = (
        on_demand_rows(MODEL, PAGES, p, replace(MACHINE, contention=share), kv=50)
        for share in (0.0, 0.8)
    )
    assert beside > apart


def test_ten_thousand_requests_are_played_in_seconds():
    job = Workload.uniform(10_000, 77, 128)
    p = replace(policy(seqs=256, rows=512, compute_rows=400), kv_blocks=4000)
    t = FewRows(times(p))
    before = time.process_time()
    simulate(t, job)
    assert time.process_time() - before < 10  # about one, on an idle machine


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_lanes_in_each_others_way_take_longer_and_move_as_much(rows):
    p, load = policy(), Load(rows, 100 * rows, samples=rows)
    apart = SweepTimes(MODEL, PAGES, p, MACHINE)
    close = SweepTimes(MODEL, PAGES, p, replace(MACHINE, contention=0.5))
    before, after = apart.lanes(load), close.lanes(load)
    longer = 0.5 * together(*before)
    assert longer > 0
    assert after.cpu - before.cpu == pytest.approx(longer)
    assert after.disk - before.disk == pytest.approx(longer)
    assert close.bytes_moved(load) == apart.bytes_moved(load)


@pytest.mark.parametrize("schedule", ["resident", "one_by_one", "on_demand"])
def test_nothing_is_in_the_way_where_reads_are_waited_for_or_there_are_none(schedule):
    p, load = policy(schedule), Load(16, 1600, samples=16)
    lanes = SweepTimes(MODEL, PAGES, p, MACHINE).lanes(load)
    assert SweepTimes(MODEL, PAGES, p, replace(MACHINE, contention=0.5)).lanes(load) == lanes


def test_a_job_of_lanes_in_each_others_way_is_slower_by_no_more_than_that():
    job = Workload((30,) * 40, (20,) * 40)
    apart = predict(MODEL, PAGES, policy(), MACHINE, job)
    close = predict(MODEL, PAGES, policy(), replace(MACHINE, contention=0.3), job)
    assert apart.seconds < close.seconds < 1.3 * apart.seconds
    assert close.bytes_read == pytest.approx(apart.bytes_read)
