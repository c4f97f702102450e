"""Schedules beside an accelerator: what stands in their lists, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cases import Case, cases
from hypothesis import given, settings

from headrace.errors import UsageError
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.lanes import D2H, GPU, H2D, PACKETS
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Schedule
from headrace.schedule.text import as_text
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, Policy

GOLDEN = Path(__file__).parent / "golden"
MODEL = ModelSpec("toy", 2, 8, 2, 1, 4, 6, 11, experts=2, top_k=1)
PAGES = page_layout(MODEL)
HELD = frozenset(p.id for p in PAGES if p.role in (Role.LAYER, Role.HEAD, Role.EMBED))
POLICY = Policy(
    "cgopipe",
    max_rows=6,
    max_seqs=6,
    micro_batches=3,
    resident=HELD,
    ring_slots=4,
    slot_bytes=4096,
    kv_blocks=6,
    compute="device",
)
STREAMING = tuple(name for name in DEVICE_SCHEDULES if name != "resident")
PIPELINES = tuple(f"device {name}" for name in STREAMING)


def small(name: str, **fields: object) -> Schedule:
    """Two layers of two experts, three micro-batches (two groups), a ring of two layers."""
    if name == "resident":
        fields = {"resident": frozenset(p.id for p in PAGES), **fields}
    parts = 2 if name == "two_group" else 3
    return generate(MODEL, PAGES, replace(POLICY, schedule=name, micro_batches=parts, **fields))


@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_golden_schedules_read_as_they_did(name: str) -> None:
    """To accept a change: delete the file, run twice, review the difference."""
    path, text = GOLDEN / f"device_{name}.txt", as_text(small(name))
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} was missing and has been written: review it")
    assert text == path.read_text()


@settings(max_examples=30, deadline=None)
@given(cases(schedules=PIPELINES))
def test_every_streamed_page_crosses_the_link_once(case: Case) -> None:
    for schedule in case.schedules():
        moved = [task for task in schedule.tasks if task.op is Op.UPLOAD_PAGE]
        streamed = [
            page.id
            for page in case.pages
            if page.id not in case.policy.resident | case.policy.cpu_experts
            and page.role not in (Role.EMBED, Role.FINAL)
        ]
        assert sorted(task.page for task in moved) == streamed
        assert all(task.lane in (H2D, PACKETS) for task in moved)
        brought = [task for task in schedule.tasks if task.op in (Op.STAGE_PAGE, Op.READ_PAGE)]
        staged = [p for p in streamed if case.policy.pageable or p in case.policy.on_disk]
        assert sorted(task.page for task in brought) == staged
        reads = [task.page for task in brought if task.op is Op.READ_PAGE]
        assert set(reads) == set(streamed) & case.policy.on_disk


def test_algorithm_1_is_what_cgopipe_lists() -> None:
    """Hidden states and pages alternate; attention stands two micro-batches ahead."""
    tasks = small("cgopipe").tasks
    fifo = [(t.op, t.layer, t.mb) for t in tasks if t.lane == H2D]
    assert [op for op, _, _ in fifo[:4]] == [
        *(Op.LOAD_HIDDEN, Op.UPLOAD_PAGE),
        *(Op.LOAD_HIDDEN, Op.UPLOAD_PAGE),
    ]
    order = [(t.op, t.layer, t.mb) for t in tasks if t.lane == GPU]
    first = order.index((Op.MOE, 0, 0))
    assert order.index((Op.PRE_ATTN, 0, 1)) < first < order.index((Op.PRE_ATTN, 0, 2))
    assert order.index((Op.MOE, 0, 1)) < order.index((Op.PRE_ATTN, 1, 0))
    assert order.index((Op.PRE_ATTN, 1, 0)) < order.index((Op.MOE, 0, 2))


def test_fastdecode_moves_a_layer_behind_its_last_hidden_states() -> None:
    fifo = [(t.op, t.layer) for t in small("fastdecode").tasks if t.lane == H2D]
    assert fifo[:5] == [(Op.LOAD_HIDDEN, 0)] * 3 + [(Op.UPLOAD_PAGE, 1)] * 2


def test_one_by_one_is_cgopipe_with_a_baton() -> None:
    slow, fast = small("one_by_one"), small("cgopipe")
    assert [task.label for task in slow.tasks] == [task.label for task in fast.tasks]
    assert all(Buffer("baton") in task.writes for task in slow.tasks)


def test_kv_that_stays_on_the_device_is_not_moved() -> None:
    def moved(share: float) -> list[int | None]:
        tasks = small("flexgen", kv_on_device=share).tasks
        assert len([t for t in tasks if t.op is Op.LOAD_KV]) == len(
            [t for t in tasks if t.op is Op.STORE_KV]
        )
        return [t.mb for t in tasks if t.op is Op.STORE_KV]

    assert moved(0.0) == [0, 1, 2, 0, 1, 2]
    assert moved(0.34) == [1, 2, 1, 2]
    assert moved(1.0) == []


def test_experts_of_the_processor_are_summed_once_per_micro_batch_and_never_move() -> None:
    theirs = frozenset(p.id for p in PAGES if p.expert == 0)
    tasks = small("cgopipe", cpu_experts=theirs).tasks
    assert not any(t.op is Op.UPLOAD_PAGE and t.page in theirs for t in tasks)
    moes = [(t.lane, t.layer, t.mb) for t in tasks if t.op is Op.MOE]
    assert sorted(moes) == [
        (lane, i, mb) for lane in ("cpu", GPU) for i in (0, 1) for mb in range(3)
    ]
    combines = [t for t in tasks if t.op is Op.COMBINE]
    assert [(t.lane, t.layer, t.mb) for t in combines] == [m for m in moes if m[0] == GPU]
    everything = frozenset(p.id for p in PAGES if p.expert is not None)
    alone = small("cgopipe", cpu_experts=everything).tasks
    assert {t.lane for t in alone if t.op is Op.MOE} == {"cpu"}
    assert not any(t.op is Op.UPLOAD_PAGE for t in alone)


def test_tiers_hold_what_is_theirs() -> None:
    sizes = buffer_sizes(MODEL, PAGES, POLICY)
    tier_of = {buffer.name: size.tier for buffer, size in sizes.items()}
    assert {n for n in ("page", "slot", "hidden", "qkv", "attended") if tier_of[n] == "device"} == {
        *("page", "slot", "hidden", "qkv", "attended")
    }
    assert tier_of["pinned"] == tier_of["qkv_host"] == tier_of["attended_host"] == "pinned"
    assert tier_of["kv"] == "host"
    pageable = buffer_sizes(MODEL, PAGES, replace(POLICY, pageable=True, stage_slots=2))
    homes = {b.index for b, size in pageable.items() if b.name == "home" and size.tier == "host"}
    assert homes >= {p.id for p in PAGES if p.expert is not None}
    assert Buffer("stage", 1) in pageable
    assert not any(buffer.name == "pinned" for buffer in pageable)
    on_disk = frozenset(homes)
    disk = buffer_sizes(MODEL, PAGES, replace(POLICY, on_disk=on_disk, stage_slots=2))
    assert not any(b.name in ("home", "pinned") and b.index in on_disk for b in disk)


def test_kv_of_parts_is_the_kv_of_a_layer() -> None:
    flexgen = replace(POLICY, schedule="flexgen", kv_on_device=0.34)
    sizes = buffer_sizes(MODEL, PAGES, flexgen)
    tiers = [size.tier for buffer, size in sizes.items() if buffer.name == "kv_part"]
    assert sorted(tiers) == ["device"] * 2 + ["pinned"] * 4


def test_pages_of_the_next_sweep_do_not_wait_for_its_batch() -> None:
    first = generate(MODEL, PAGES, POLICY)
    second = generate(MODEL, PAGES, POLICY, next_phase(PAGES, POLICY))
    text = as_text(first, second).splitlines()
    ahead = [line for line in text if line.startswith("packets:") and "host:" not in line]
    assert len(ahead) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ring_slots": 3}, "at least 4 slots"),
        ({"ring_slots": 0}, "ring_slots"),
        ({"pageable": True}, "stage_slots"),
        ({"on_disk": frozenset((2,)), "stage_slots": 1, "disk_lanes": 0}, "disk_lanes"),
        ({"schedule": "two_group"}, "two_group"),
        ({"schedule": "resident"}, "pages to stream"),
        ({"cpu_experts": frozenset((1,)), "resident": frozenset()}, "of experts only"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(MODEL, PAGES, replace(POLICY, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"compute": "cloud"},
        {"schedule": "stream"},
        {"compute": "host"},
        {"kv_on_device": 0.5},
        {"schedule": "flexgen", "kv_on_device": 1.5},
        {"cpu_experts": HELD},
        {"compute": "host", "schedule": "stream", "cpu_experts": frozenset((2,))},
        {"compute": "host", "schedule": "stream", "pageable": True},
    ],
)
def test_policies_that_contradict_themselves_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(POLICY, **fields)


def test_policies_say_where_attention_and_experts_run() -> None:
    assert (POLICY.on_device, POLICY.attention_on_device) == (True, False)
    assert replace(POLICY, schedule="flexgen").attention_on_device
    assert not Policy("stream", 1, 1).on_device


def test_lanes_are_those_of_the_machine() -> None:
    lanes = small("cgopipe", pageable=True, stage_slots=2).lanes
    assert set(lanes) == {"stage", PACKETS, "host", GPU, D2H, "cpu", H2D}
