"""Steady sweeps beside a device: what bounds them, and how long it stands idle."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.planner.idle import Steady, compare, steady
from headrace.planner.sweeps import Load
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate
from headrace.schedule.lanes import CPU, GPU
from headrace.schedule.task import Op
from headrace.schedule.work import WorkModel
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
from headrace.specs.policy import DEVICE_SCHEDULES, Policy

MODEL = ModelSpec("toy", 3, 64, 4, 2, 16, 96, 100, experts=4, top_k=2)
PAGES = page_layout(MODEL)
HELD = frozenset(page.id for page in PAGES if page.expert is None)
POLICY = Policy(
    "cgopipe",
    max_rows=32,
    max_seqs=32,
    micro_batches=2,
    resident=HELD,
    ring_slots=8,
    slot_bytes=40_000,
    kv_blocks=64,
    compute="device",
)
MACHINE = Hardware(
    "test",
    {
        CPU_FLOPS: 1e9,
        DRAM: 1e8,
        DISK: 1e6,
        HOST: 1.0,
        GPU_FLOPS: 1e11,
        HBM: 1e8,
        H2D: 1e6,
        D2H: 1e6,
    },
    row_seconds=0.0,
    task_seconds=0.0,
)
LOAD = Load(32, 32 * 10, samples=32)
STREAMING = [name for name in DEVICE_SCHEDULES if name != "resident"]


def test_a_slow_link_bounds_and_cgopipe_keeps_it_busy() -> None:
    found = {
        each.schedule: each for each in compare(STREAMING, MODEL, PAGES, POLICY, MACHINE, LOAD)
    }
    best = found["cgopipe"]
    weights = sum(page.bytes for page in PAGES if page.expert is not None) / 1e6
    assert best.bound_by == "link"
    assert best.busy["link"] >= weights
    assert best.idle("link") < 0.05 * best.seconds
    others = [each for name, each in found.items() if name not in ("cgopipe", "two_group")]
    assert all(best.seconds < each.seconds for each in others)
    assert found["two_group"].idle("link") < 0.01 * found["two_group"].seconds
    assert found["one_by_one"].idle("link") > 2 * best.idle("link")


def test_staging_takes_three_passes_over_memory_and_disk_pages_their_time() -> None:
    staged = replace(POLICY, pageable=True, stage_slots=2)
    work = WorkModel(MODEL, PAGES, staged)
    tasks = generate(MODEL, PAGES, staged).tasks
    page = next(page for page in PAGES if page.expert is not None)
    moved = [
        work.work(task, Binding()).amounts[DRAM]
        for task in tasks
        if task.page == page.id and task.op in (Op.STAGE_PAGE, Op.UPLOAD_PAGE)
    ]
    assert sum(moved) == 3 * page.bytes
    disk = replace(
        POLICY, on_disk=frozenset(p.id for p in PAGES if p.expert is not None), stage_slots=2
    )
    slow = replace(MACHINE, roofs={**MACHINE.roofs, DISK: 1e5}, lane_rate=1e5)
    found = steady(MODEL, PAGES, disk, slow, LOAD)
    assert found.bound_by.startswith("disk")
    read = sum(page.bytes for page in PAGES if page.expert is not None)
    assert found.seconds == pytest.approx(read / 1e5, rel=1e-6)


def test_work_lands_on_the_roofs_of_the_lane_that_does_it() -> None:
    work, binding = WorkModel(MODEL, PAGES, POLICY), Binding(((Extent(1, 10),) * 16,) * 2, (16, 16))
    for task in generate(MODEL, PAGES, POLICY).tasks:
        roofs = work.work(task, binding).amounts.keys()
        if task.lane == GPU:
            assert roofs <= {GPU_FLOPS, HBM}, task
        elif task.lane == CPU:
            assert roofs <= {CPU_FLOPS, DRAM}, task
    qkv, hidden = (
        next(
            work.work(t, binding).amounts
            for t in generate(MODEL, PAGES, POLICY).tasks
            if t.op is op
        )
        for op in (Op.OFFLOAD_QKV, Op.LOAD_HIDDEN)
    )
    assert qkv[D2H] == 16 * (64 + 2 * 32) * 2
    assert hidden[H2D] == 16 * 64 * 2


def test_kv_crosses_the_link_only_where_the_device_attends() -> None:
    flexgen = replace(POLICY, schedule="flexgen")
    work, binding = (
        WorkModel(MODEL, PAGES, flexgen),
        Binding(((Extent(1, 10),) * 16,) * 2, (16, 16)),
    )
    tasks = generate(MODEL, PAGES, flexgen).tasks
    loads = [work.work(t, binding).amounts[H2D] for t in tasks if t.op is Op.LOAD_KV]
    stores = [work.work(t, binding).amounts[D2H] for t in tasks if t.op is Op.STORE_KV]
    assert loads == [16 * 9 * 64 * 2] * 6  # nine cached tokens each
    assert stores == [16 * 64 * 2] * 6
    prefill = Binding(((Extent(10, 10),), ()))
    assert work.work(next(t for t in tasks if t.op is Op.LOAD_KV), prefill).amounts[H2D] == 0


def test_micro_batches_read_experts_each_and_share_the_rows() -> None:
    work, binding = WorkModel(MODEL, PAGES, POLICY), Binding(((Extent(1, 10),) * 16,) * 2, (16, 16))
    moes = [t for t in generate(MODEL, PAGES, POLICY).tasks if t.op is Op.MOE and t.layer == 0]
    flops = [work.work(task, binding).amounts[GPU_FLOPS] for task in moes]
    assert flops == [2 * 16 * 2 * 3 * 64 * 96] * 2


def test_experts_of_the_processor_cost_its_roofs_and_leave_the_others_to_the_device() -> None:
    beside = frozenset(p.id for p in PAGES if p.expert in (0, 1))
    policy = replace(POLICY, cpu_experts=beside)
    work, binding = WorkModel(MODEL, PAGES, policy), Binding(((Extent(1, 10),) * 16,) * 2, (16, 16))
    first = [t for t in generate(MODEL, PAGES, policy).tasks if (t.layer, t.mb) == (0, 0)]
    moes = {t.lane: work.work(t, binding).amounts for t in first if t.op is Op.MOE}
    each = 2 * 8 * 3 * 64 * 96  # half of 16 rows visit an expert
    assert moes[CPU][CPU_FLOPS] == moes[GPU][GPU_FLOPS] == 2 * each
    sent, back = (
        next(work.work(t, binding).amounts for t in first if t.op is op)
        for op in (Op.OFFLOAD_HIDDEN, Op.LOAD_PARTIAL)
    )
    assert sent[D2H] == 16 * (64 * 2 + 2 * 8)
    assert back[H2D] == 16 * 64 * 2
    faster = steady(MODEL, PAGES, policy, MACHINE, LOAD)
    assert faster.seconds < steady(MODEL, PAGES, POLICY, MACHINE, LOAD).seconds


def test_drawing_on_a_device_leaves_host_work_to_the_host() -> None:
    work, binding = WorkModel(MODEL, PAGES, POLICY), Binding(((Extent(1, 10),), ()), (1, 0))
    by_op = {t.op: work.work(t, binding).amounts for t in generate(MODEL, PAGES, POLICY).tasks}
    assert HOST not in by_op[Op.SAMPLE]
    assert by_op[Op.COMMIT][HOST] == 1


def test_idle_is_what_is_left() -> None:
    each = Steady("x", 2.0, {"gpu": 0.5, "link": 1.5})
    assert (each.bound_by, each.idle("gpu"), each.idle("cpu")) == ("link", 1.5, 2.0)
    assert each.idle("link") == pytest.approx(0.5)
