"""Memory beside an accelerator is what the schedule's buffers take, tier by tier."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.planner.device_map import Budgets, device_map
from headrace.planner.memory_map import arena_bytes
from headrace.schedule.generate import generate
from headrace.schedule.tally import Kinds
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, Policy

MODEL = ModelSpec("toy", 3, 64, 4, 2, 16, 96, 100, experts=4, top_k=2)
MODELS = (MODEL, replace(MODEL, tied_embeddings=True), replace(MODEL, experts=1, top_k=1, layers=1))
ROOM = Budgets(device=10**9, host=10**9)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_each_tier_takes_what_the_schedule_touches(data):
    model = data.draw(st.sampled_from(MODELS))
    pages = page_layout(model, data.draw(st.sampled_from([6_000, 10**6])))
    schedule = data.draw(st.sampled_from(DEVICE_SCHEDULES))
    parts = 2 if schedule == "two_group" else data.draw(st.integers(1, 3))
    ids = [page.id for page in pages]
    if schedule == "resident":
        held = {p.id for p in pages if p.role is not Role.EMBED or data.draw(st.booleans())}
    else:
        held = set(data.draw(st.lists(st.sampled_from(ids), unique=True)))
    rest = [p for p in pages if p.id not in held and p.role is not Role.FINAL]
    beside = frozenset[int]()
    if schedule != "resident" and data.draw(st.booleans()):
        first = {p.id for p in pages if p.expert == 0}
        beside = frozenset(first) if not first & held else beside
    on_disk = [p.id for p in rest if p.id not in beside and data.draw(st.booleans())]
    pageable = data.draw(st.booleans())
    inside = {Role.EMBED, Role.FINAL}
    streamed = [p for p in rest if p.id not in beside and p.role not in inside]
    staged = streamed if pageable else [p for p in streamed if p.id in on_disk]
    policy = Policy(
        schedule, max_rows=12, max_seqs=6, micro_batches=parts, resident=frozenset(held),
        ring_slots=len(streamed), slot_bytes=10**5,
        kv_blocks=8, compute="device", on_disk=frozenset(on_disk), stage_slots=min(2, len(staged)),
        pageable=pageable, cpu_experts=beside,
        kv_on_device=data.draw(st.sampled_from([0.0, 0.5, 1.0])) if schedule == "flexgen" else 0.0,
    )  # fmt: skip
    expected: dict[str, int] = {}
    for size in generate(model, pages, policy).sizes.values():
        expected[size.tier] = expected.get(size.tier, 0) + arena_bytes(size.bytes)
    found = device_map(Kinds(model, pages), policy, ROOM).tiers
    assert found["device"].planned_bytes == expected.get("device", 0)
    assert found["pinned"].planned_bytes == expected.get("pinned", 0)
    both = expected.get("pinned", 0) + expected.get("host", 0)
    assert found["host"].planned_bytes == both
    for use in found.values():
        assert use.planned_bytes == sum(use.parts.values())
