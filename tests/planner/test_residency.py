"""Which pages stay: within the room, in the order of their worth, experts spread evenly."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.planner.residency import Residency
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout

MODEL = ModelSpec(
    "mixtral", layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn_width=128, vocab=300,
    experts=8, top_k=2,
)  # fmt: skip
PAGES = page_layout(MODEL, cut_bytes=20_000)


def at() -> Residency:
    return Residency(MODEL, PAGES)


def total(residency: Residency) -> int:
    return residency.weight_bytes(residency.everything(), 0)


@settings(deadline=None)
@given(st.floats(0, 1.1), st.integers(2, 6), st.sampled_from([4000, 20_000, 10**6]))
def test_a_filling_fits_keeps_the_final_norm_and_is_refused_only_when_nothing_fits(
    share, ring, cut
):
    residency = Residency(MODEL, page_layout(MODEL, cut_bytes=cut))
    room = int(share * total(residency))
    least = residency.weight_bytes(residency.smallest(ring), ring)
    chosen = residency.fill(room, ring)
    assert (chosen is None) == (room < least)
    if chosen is not None:
        assert residency.weight_bytes(chosen, ring) <= room
        assert {p.id for p in residency.final} <= chosen


@settings(deadline=None)
@given(st.floats(0.3, 1.0))
def test_shared_pages_come_before_experts_and_embedding_rows_last(share):
    residency = at()
    chosen = residency.fill(int(share * total(residency)), 3)
    by_role = {role: [p.id in chosen for p in PAGES if p.role is role] for role in Role}
    experts = by_role[Role.EXPERT] + by_role[Role.EXPERT_UP] + by_role[Role.EXPERT_DOWN]
    if any(experts) and len(set(map(residency.bytes_of.get, (p.id for p in PAGES)))) < 2:
        assert all(by_role[Role.LAYER] + by_role[Role.HEAD])
    if any(by_role[Role.EMBED]):
        assert all(experts)


def test_experts_are_spread_evenly_over_layers():
    residency = at()
    base = residency.fill(0 + total(residency) * 2 // 3, 3)
    held = [sum(p.id in base for p in residency.experts if p.layer == n) for n in range(4)]
    assert sum(held) > 4
    assert max(held) - min(held) <= 1


def test_more_room_never_keeps_fewer_bytes():
    residency = at()
    sizes = [
        residency.weight_bytes(chosen, 0)
        for room in range(0, total(residency) + 1, 20_000)
        if (chosen := residency.fill(room, 3)) is not None
    ]
    assert sizes == sorted(sizes)


def test_everything_fits_without_a_ring():
    residency = at()
    assert residency.fill(total(residency), 3) == residency.everything()
    assert residency.slot_bytes(residency.everything()) == 0


def test_the_smallest_choice_keeps_a_page_that_would_make_every_slot_larger():
    residency = Residency(MODEL, page_layout(MODEL, cut_bytes=10**6))
    head = next(p.id for p in residency.shared if p.role is Role.HEAD)
    assert residency.bytes_of[head] < 6 * (
        residency.bytes_of[head] - residency.bytes_of[residency.experts[0].id]
    ) or head not in residency.smallest(2)
    for ring in (2, 3, 30):
        least = residency.weight_bytes(residency.smallest(ring), ring)
        nothing = frozenset(p.id for p in residency.final)
        assert least <= residency.weight_bytes(nothing, ring)
    assert head in residency.smallest(1000)
