"""Several equal devices of one host: shares of the work, exchanges, memory, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.planner.candidates import Situation
from headrace.planner.device_map import Budgets, device_map
from headrace.planner.idle import steady
from headrace.planner.peaks import tier_peaks
from headrace.planner.prices import DevicePrices, Sketches, price
from headrace.planner.search import best_plan
from headrace.planner.sweeps import Load
from headrace.schedule.tally import Kinds
from headrace.specs.hardware import D2H, H2D, Hardware
from headrace.specs.model import Mla, ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, Policy
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload

MODEL = ModelSpec(
    "toy", layers=6, hidden=256, heads=8, kv_heads=4, head_dim=32, ffn_width=512, vocab=4000,
    experts=8, top_k=2,
)  # fmt: skip
PAGES = page_layout(MODEL)
ONE = replace(
    known_hardware("t4").hardware,
    efficiency={"gpu.moe": ((1, 0.3), (64, 0.8)), "gpu.post_attn": ((1, 0.1),)},
)
STREAMING = [name for name in DEVICE_SCHEDULES if name != "resident"]
MIXTRAL = replace(known_model("mixtral-8x7b").spec, layers=3)
SKETCHES = Sketches()


def policy(name: str, share: float = 0.0, model: ModelSpec = MODEL) -> Policy:
    pages = page_layout(model)
    experts = [p for p in pages if p.expert is not None]
    held = {p.id for p in pages if p.expert is None or name == "resident"}
    held |= {p.id for i, p in enumerate(experts) if int((i + 1) * share) > int(i * share)}
    return Policy(
        name, max_rows=96, max_seqs=96, micro_batches=2 if name == "two_group" else 5,
        resident=frozenset(held), ring_slots=16, slot_bytes=max(p.bytes for p in pages),
        kv_blocks=4000, compute="device",
    )  # fmt: skip


def priced(p: Policy, machine: Hardware, model: ModelSpec = MODEL) -> DevicePrices:
    found = price(model, page_layout(model), p, machine, SKETCHES)
    assert isinstance(found, DevicePrices)
    return found


loads = st.builds(
    lambda decodes, kv, chunk, seen: Load(decodes, decodes * kv, chunk, seen, max(1, decodes)),
    st.integers(1, 96), st.integers(1, 2000), st.integers(0, 4000), st.integers(1, 1000),
)  # fmt: skip


def test_once_as_many_devices_are_the_same_machine() -> None:
    assert ONE.times(1) == ONE


def test_links_and_memory_add_up_and_the_host_is_shared() -> None:
    two, one = known_hardware("t4x2").hardware, known_hardware("t4").hardware
    assert two.devices == 2
    for roof in ("gpu_flops", "hbm", H2D, D2H):
        assert two.roofs[roof] == 2 * one.roofs[roof]
    assert two.capacity["device"] == 2 * one.capacity["device"]
    four = known_hardware("t4x4").hardware
    assert four.roofs["dram"] == two.roofs["dram"]
    assert four.capacity["host"] == two.capacity["host"] == 416_000_000_000


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(DEVICE_SCHEDULES), loads)
def test_no_play_is_faster_than_the_bound(name: str, load: Load) -> None:
    p = policy(name, 0.3)
    for count in (2, 4):
        prices = priced(p, ONE.times(count))
        assert prices.bound(load) <= prices.played(load).steady * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STREAMING), st.sampled_from([0.0, 0.1]), loads)
def test_more_devices_are_not_slower_by_their_bound(name: str, share: float, load: Load) -> None:
    """Of layers as large as Mixtral's: of small ones, exchanges may take longer than they save."""
    host = known_hardware("t4x4").hardware
    card = replace(known_hardware("t4").hardware, roofs={**ONE.roofs, "dram": host.roofs["dram"]})
    p = policy(name, share, MIXTRAL)
    bounds = [priced(p, card.times(n), MIXTRAL).bound(load) for n in (1, 2, 4)]
    assert bounds[2] <= bounds[1] <= bounds[0]


@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_a_sketch_takes_what_the_whole_model_takes(name: str) -> None:
    p, machine, load = policy(name), ONE.times(4), Load(96, 96 * 40, samples=96)
    full = steady(MODEL, PAGES, p, machine, load).seconds
    assert priced(p, machine).played(load).steady == pytest.approx(full, rel=0.015)


def test_exchanges_cross_the_links_and_weights_do_so_once() -> None:
    """Two all-reduces a layer send 2 (n - 1) times their bytes, and scores are brought together."""
    load, p = Load(96, 96 * 40, samples=96), policy("cgopipe")
    one, four = (priced(p, ONE.times(count)).bytes_moved(load) for count in (1, 4))
    sums = MODEL.layers * 2 * 2 * 3 * 96 * MODEL.hidden * 2
    scores = 96 * MODEL.vocab * 2 * 3 // 4
    assert four[D2H] - one[D2H] == pytest.approx(sums + scores, rel=1e-9)
    assert four[H2D] - one[H2D] == pytest.approx(sums + scores, rel=1e-9)


@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_rows_lie_whole_on_each_device_and_all_else_is_divided(name: str) -> None:
    p, kinds = policy(name), Kinds(MODEL, PAGES)
    room = Budgets(10**12, 10**12)
    one, four = (device_map(kinds, p, replace(room, devices=n)).tiers for n in (1, 4))
    parts = {n: (one["device"].parts[n], four["device"].parts[n]) for n in one["device"].parts}
    assert {n for n, (a, b) in parts.items() if a != b} == {"activations", "scratch"}
    assert parts["activations"][0] < parts["activations"][1] < 4 * parts["activations"][0]
    assert one["host"].planned_bytes == four["host"].planned_bytes
    peaks = tier_peaks(MODEL, PAGES, p, ONE.times(4))
    assert peaks["device"].planned_bytes == pytest.approx(four["device"].planned_bytes, rel=0.02)
    assert peaks["device"].capacity_bytes == 60_000_000_000


def test_what_does_not_divide_evenly_is_refused() -> None:
    p = policy("cgopipe")
    with pytest.raises(UsageError, match="KV heads"):
        priced(p, ONE.times(8))
    latent = replace(MODEL, mla=Mla(kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32))
    with pytest.raises(UsageError, match="latent"):
        priced(p, ONE.times(2), latent)


def test_a_model_that_no_single_card_of_the_host_holds_is_planned() -> None:
    model, machine = known_model("mixtral-8x22b").spec, known_hardware("t4x4").hardware
    job = Workload.uniform(500, 77, 128)
    plan = best_plan(Situation(model, page_layout(model), None, machine, job, 370 * 10**9), ())
    assert plan.policy.on_device
    assert plan.memory.tiers["device"].fits
