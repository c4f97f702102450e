"""What a sweep's routing leaves to do."""

from __future__ import annotations

import pytest

from headrace.engine.sweep import Sweep
from headrace.models.sweep import nothing_to_do
from headrace.schedule.generate import generate
from headrace.schedule.task import Op
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy

MODEL = ModelSpec(
    "mixtral", layers=2, hidden=64, heads=2, kv_heads=1, head_dim=32, ffn_width=64, vocab=100,
    experts=4, top_k=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "reads"),
    [("stream", set()), ("one_by_one", set()), ("on_demand", {1, 2})],
)
def test_reads_are_spared_only_where_they_wait_for_the_router(schedule, reads):
    """One that waits for its turn alone is made whoever chose it."""
    pages = page_layout(MODEL)
    policy = Policy(
        schedule, 8, 8, resident=frozenset({0}), ring_slots=4, slot_bytes=1 << 20, kv_blocks=8
    )
    sweep = Sweep(0)
    sweep.binding.routed = {0: (3, 0, 0, 1)}  # of the second layer nothing is known yet
    passed = [t for t in generate(MODEL, pages, policy).tasks if nothing_to_do(t, sweep)]
    assert all(task.layer == 0 for task in passed)
    assert {task.expert for task in passed if task.op is Op.READ_PAGE} == reads
    assert {task.expert for task in passed if task.op is Op.EXPERT} == {1, 2}
