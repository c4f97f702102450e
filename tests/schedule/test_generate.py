"""Generators: what stands in their lists, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cases import Case, cases
from hypothesis import given, settings

from headrace.errors import UsageError
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.task import Buffer, Op, Schedule
from headrace.schedule.text import as_text
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role, page_layout
from headrace.specs.policy import Policy

GOLDEN = Path(__file__).parent / "golden"

MODEL = ModelSpec("toy", 1, 8, 2, 1, 4, 6, 11, experts=3, top_k=2)
PAGES = page_layout(MODEL)
POLICY = Policy(
    "stream", max_rows=4, max_seqs=4, micro_batches=2, ring_slots=2, slot_bytes=4096, kv_blocks=4
)


def small(schedule: str, resident: tuple[Role, ...] = (Role.LAYER,)) -> list[Schedule]:
    """Two sweeps of one layer of three experts, two micro-batches, a ring of two slots."""
    ids = frozenset(page.id for page in PAGES if page.role in resident)
    policy = replace(POLICY, schedule=schedule, resident=ids)
    phase = next_phase(PAGES, policy)
    return [generate(MODEL, PAGES, policy), generate(MODEL, PAGES, policy, phase)]


@pytest.mark.parametrize("name", ["stream", "on_demand", "one_by_one", "resident"])
def test_golden_schedules_read_as_they_did(name: str) -> None:
    """To accept a change: delete the file, run twice, review the difference."""
    roles = tuple(Role) if name == "resident" else (Role.LAYER, Role.HEAD)
    path, text = GOLDEN / f"{name}.txt", as_text(*small(name, roles))
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} was missing and has been written: review it")
    assert text == path.read_text()


@settings(max_examples=40, deadline=None)
@given(cases(schedules=("stream", "on_demand")))
def test_every_streamed_page_crosses_the_ring_once_ahead_of_its_use(case: Case) -> None:
    (schedule, *_) = case.schedules()
    reads = [task for task in schedule.tasks if task.op is Op.READ_PAGE]
    table = Role.HEAD if case.model.tied_embeddings else Role.EMBED
    expected = [
        page.id
        for page in case.pages
        if page.id not in case.policy.resident and page.role not in (Role.EMBED, Role.FINAL)
    ]
    assert [read.page for read in reads] == expected
    slots = [buffer.index for read in reads for buffer in read.writes]
    assert slots == [index % case.policy.ring_slots for index in range(len(expected))]
    whole = all(p.id in case.policy.resident for p in case.pages if p.role is table)
    assert any(task.op is Op.READ_ROWS for task in schedule.tasks) is not whole


@settings(max_examples=25, deadline=None)
@given(cases(schedules=("stream",)))
def test_first_reads_stand_in_front_and_depend_on_nothing_of_their_sweep(case: Case) -> None:
    (schedule, *_) = case.schedules()
    reads = [task for task in schedule.tasks if task.op is Op.READ_PAGE]
    first = schedule.tasks[: min(len(reads), case.policy.ring_slots)]
    assert all(task.op is Op.READ_PAGE and not task.reads for task in first)


def test_on_demand_reads_wait_for_routing_only_for_experts() -> None:
    for schedule in small("on_demand", resident=()):
        for task in schedule.tasks:
            if task.op is Op.READ_PAGE:
                routing = (
                    () if task.expert is None else (Buffer("routing", 0), Buffer("routing", 1))
                )
                assert task.reads == routing


def test_one_by_one_is_stream_with_a_baton() -> None:
    for slow, fast in zip(small("one_by_one"), small("stream"), strict=True):
        assert [task.label for task in slow.tasks] == [task.label for task in fast.tasks]
        assert all(
            Buffer("baton") in task.reads and Buffer("baton") in task.writes for task in slow.tasks
        )


def test_a_dense_model_has_no_router_and_its_experts_read_no_routing() -> None:
    model = ModelSpec("toy", 2, 8, 2, 1, 4, 6, 11)
    for name in ("stream", "on_demand"):
        schedule = generate(model, page_layout(model), replace(POLICY, schedule=name))
        assert not any(task.op is Op.ROUTER for task in schedule.tasks)
        assert not any(buffer.name == "routing" for buffer in schedule.sizes)


def test_the_ring_goes_on_where_it_stopped() -> None:
    first, second = small("stream")
    reads = [t for s in (first, second) for t in s.tasks if t.op is Op.READ_PAGE]
    assert [read.writes[0].index for read in reads] == [0, 1] * (len(reads) // 2)
    assert next_phase(PAGES, replace(POLICY, ring_slots=0)) == 0


def test_sizes_cover_what_the_tasks_touch_and_no_more() -> None:
    for name in ("stream", "on_demand", "one_by_one"):
        (schedule, _) = small(name)
        touched = {b for task in schedule.tasks for b in (*task.reads, *task.writes)}
        assert set(schedule.sizes) == touched


def test_lanes_stand_in_order_of_first_use() -> None:
    assert small("stream")[0].lanes == ("disk0", "disk1", "host", "rows", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "resident"}, "pages to stream"),
        ({"ring_slots": 0}, "ring_slots"),
        ({"disk_lanes": 0}, "disk_lanes"),
    ],
)
def test_policies_that_cannot_be_honoured_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generate(MODEL, PAGES, replace(POLICY, **change))


def test_nothing_streams_without_pages_to_stream() -> None:
    pages: tuple[Page, ...] = PAGES
    policy = replace(POLICY, resident=frozenset(p.id for p in pages), ring_slots=0)
    schedule = generate(MODEL, pages, policy)
    assert schedule.lanes == ("host", "cpu")
