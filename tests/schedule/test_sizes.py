"""Sizes of buffers at the policy's maxima."""

from __future__ import annotations

from dataclasses import replace

from headrace.schedule.sizes import READ_SLACK, buffer_sizes
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import Policy
from headrace.specs.scratch import routing_bytes, scratch_bytes

MODEL = ModelSpec("toy", 2, 64, 4, 2, 16, 96, 100, experts=4, top_k=2)
PAGES = page_layout(MODEL)
POLICY = Policy(
    "stream",
    max_rows=32,
    max_seqs=8,
    micro_batches=2,
    ring_slots=3,
    slot_bytes=70_000,
    kv_blocks=5,
    resident=frozenset((1, 2)),
)


def test_activations_and_kv_follow_their_shapes() -> None:
    sizes = buffer_sizes(MODEL, PAGES, POLICY)
    assert sizes[Buffer("hidden", 1)] == Size("host", 16 * 64 * 4)
    assert sizes[Buffer("q")] == sizes[Buffer("attended")] == Size("host", 16 * 64 * 4)
    assert sizes[Buffer("routing", 0)] == Size("host", routing_bytes(MODEL, POLICY))
    assert sizes[Buffer("kv", 1)] == Size("host", 2 * 5 * 16 * 32 * 2)
    assert sizes[Buffer("final")] == Size("host", 8 * 64 * 4)
    assert sizes[Buffer("logits")] == Size("host", 8 * 100 * 4)
    assert sizes[Buffer("rows")] == Size("host", 32 * 64 * 2)
    assert sizes[Buffer("requests")] == Size("state", 0)
    assert sizes[Buffer("scratch")].bytes >= scratch_bytes(MODEL, POLICY)
    assert Buffer("hidden", 2) not in sizes
    assert Buffer("inter") not in sizes


def test_resident_pages_take_what_the_page_table_says_and_slots_what_the_policy_says() -> None:
    sizes = buffer_sizes(MODEL, PAGES, POLICY, page_bytes={1: 10_000})
    assert sizes[Buffer("page", 1)].bytes == 10_048  # a multiple of 64
    assert 0 <= sizes[Buffer("page", 2)].bytes - PAGES[2].bytes - READ_SLACK < 64
    assert [b.index for b in sizes if b.name == "slot"] == [0, 1, 2]
    assert sizes[Buffer("slot", 2)].bytes == 70_016


def test_only_resident_pages_and_the_final_norm_are_held() -> None:
    final = next(page.id for page in PAGES if page.role is Role.FINAL)
    held = {b.index for b in buffer_sizes(MODEL, PAGES, POLICY) if b.name == "page"}
    assert held == {1, 2, final}


def test_cut_experts_need_an_intermediate() -> None:
    pages = page_layout(MODEL, cut_bytes=4096)
    policy = replace(POLICY, resident=frozenset())
    assert buffer_sizes(MODEL, pages, policy)[Buffer("inter")].bytes == 32 * 96 * 4
