"""Counting tasks by kind gives the work of the list that a generator makes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate
from headrace.schedule.tally import Kinds, tally
from headrace.schedule.work import WorkModel
from headrace.specs.model import ModelSpec, SharedExpert
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, ON_DEVICE_ATTENTION, SCHEDULES, Policy

MODELS = (
    ModelSpec("toy", 3, 64, 4, 2, 16, 96, 100, experts=4, top_k=2),
    ModelSpec(
        "toy", 4, 64, 4, 2, 16, 96, 100, experts=4, top_k=2, shared=SharedExpert(64, gated=True),
        dense_layers=1, dense_width=128, tied_embeddings=True,
    ),
    ModelSpec("toy", 4, 64, 4, 2, 16, 96, 100, experts=4, sliding_window=5, window_every=2),
    ModelSpec("toy", 2, 64, 4, 2, 16, 96, 100),
)  # fmt: skip


def totals(tasks, work, binding):
    """(op, micro-batch, roof) -> amount, and how many tasks of each op."""
    found: dict[tuple[object, ...], float] = {}
    for task, count in tasks:
        for roof, amount in work.work(task, binding).amounts.items():
            roof = roof.split(":")[0]  # which disk lane a page takes is up to the list
            key = (task.op, task.mb, roof)
            found[key] = found.get(key, 0.0) + count * amount
    return {key: amount for key, amount in found.items() if amount}


def check(model, pages, policy, binding):
    listed = [(task, 1) for task in generate(model, pages, policy).tasks]
    counted = tally(Kinds(model, pages), policy)
    tasks = Counter(t.op for t, _ in listed)
    assert sum(count for _, count in counted) == sum(tasks.values())
    for op, count in tasks.items():
        assert sum(n for t, n in counted if t.op is op) == count, op
    work = WorkModel(model, pages, policy)
    expected = totals(listed, work, binding)
    assert totals(counted, work, binding) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_tally_of_a_sweep_is_the_work_of_its_list(data):
    model = data.draw(st.sampled_from(MODELS))
    pages = page_layout(model, data.draw(st.sampled_from([6_000, 10**6])))
    on_device = data.draw(st.booleans())
    schedule = data.draw(st.sampled_from(DEVICE_SCHEDULES if on_device else SCHEDULES))
    ids = [page.id for page in pages]
    if schedule == "resident":
        held = {p.id for p in pages if p.role is not Role.EMBED or data.draw(st.booleans())}
    else:
        held = set(data.draw(st.lists(st.sampled_from(ids), unique=True)))
    rest = [p for p in pages if p.id not in held and p.role is not Role.FINAL]
    parts = 2 if schedule == "two_group" else data.draw(st.integers(1, 3))
    beside: frozenset[int] = frozenset()
    changes = {}
    if on_device:
        if schedule != "resident":
            experts = sorted({(p.layer, p.expert) for p in rest if p.expert is not None})
            chosen = set(data.draw(st.lists(st.sampled_from(experts)))) if experts else set()
            whole = {
                e for e in chosen
                if not any((p.layer, p.expert) == e and p.id in held for p in pages)
            }  # fmt: skip
            beside = frozenset(p.id for p in pages if (p.layer, p.expert) in whole)
        on_disk = frozenset(
            p.id for p in rest if p.id not in beside and p.role is not Role.EMBED
            and data.draw(st.booleans())
        )  # fmt: skip
        changes = {
            "compute": "device", "on_disk": on_disk, "pageable": data.draw(st.booleans()),
            "stage_slots": 2, "cpu_experts": beside,
        }  # fmt: skip
        if schedule in ON_DEVICE_ATTENTION and schedule != "resident":
            changes["kv_on_device"] = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    policy = Policy(
        schedule, max_rows=12, max_seqs=6, micro_batches=parts, resident=frozenset(held),
        ring_slots=0 if schedule == "resident" else 4 * len(pages), slot_bytes=10**6,
        kv_blocks=8, **changes,
    )  # fmt: skip
    extents = tuple((Extent(1, 7), Extent(2, 9)) for _ in range(parts))
    check(model, pages, policy, Binding(extents, (1,) * parts))
