"""Prices: sketches and tables against full plays of the whole model, on any machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.planner.census import Way, Weights, take_census
from headrace.planner.idle import steady
from headrace.planner.played import SteadyPlay, binding_of
from headrace.planner.prices import DevicePrices, HostPrices, Sketches, price
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.generate import generate
from headrace.schedule.tally import Kinds
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec, SharedExpert
from headrace.specs.pages import Page, Role, page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, Policy
from headrace.specs.registry import known_hardware, known_model

MODEL = ModelSpec(
    "toy", layers=11, hidden=256, heads=8, kv_heads=2, head_dim=32, ffn_width=512, vocab=4000,
    experts=8, top_k=2,
)  # fmt: skip
MACHINE = Hardware(
    "small",
    {
        "cpu_flops": 4e10, "dram": 2e9, "disk": 4e7, "host": 1.0,
        "gpu_flops": 4e11, "hbm": 8e9, "h2d": 3e8, "d2h": 3e8,
    },
    lane_rate=3e7,
    efficiency={"gpu.moe": ((1, 0.3), (64, 0.8)), "attn": ((1, 0.5),)},
    row_seconds=1e-6,
    task_seconds=5e-6,
)  # fmt: skip
STREAMING = [name for name in DEVICE_SCHEDULES if name != "resident"]
LOADS = [Load(96, 96 * 40, samples=96), Load(30, 30 * 300, 66, 50, 31)]
SKETCHES = Sketches()


def policy(name: str, model: ModelSpec = MODEL, share: float = 0.0, **fields: object) -> Policy:
    pages = page_layout(model)
    experts = [p for p in pages if p.expert is not None]
    held = {p.id for p in pages if p.expert is None}
    held |= {p.id for i, p in enumerate(experts) if int((i + 1) * share) > int(i * share)}
    if name == "resident":
        held = {p.id for p in pages}
    most = max(sum(p.layer == layer and p.id not in held for p in pages) for layer in range(11))
    given = {
        "max_rows": 96, "max_seqs": 96, "micro_batches": 2 if name == "two_group" else 5,
        "resident": frozenset(held), "ring_slots": 2 * most, "slot_bytes": 1 << 20,
        "kv_blocks": 4000, "compute": "device",
    }  # fmt: skip
    return Policy(name, **given | fields)


def priced(p: Policy, model: ModelSpec = MODEL, machine: Hardware = MACHINE) -> DevicePrices:
    found = price(model, page_layout(model), p, machine, SKETCHES)
    assert isinstance(found, DevicePrices)
    return found


def full(p: Policy, load: Load, model: ModelSpec = MODEL, machine: Hardware = MACHINE) -> float:
    return steady(model, page_layout(model), p, machine, load).seconds


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_a_sketch_takes_what_the_whole_model_takes(name: str, load: Load) -> None:
    p = policy(name)
    assert priced(p).played(load).steady == pytest.approx(full(p, load), rel=0.01)


EXPERTS = [p for p in page_layout(MODEL) if p.expert is not None]
VARIANTS = {
    "some experts resident": policy("cgopipe", share=0.3),
    "packets, some experts resident": policy("two_group", share=0.3),
    "pageable homes": policy("cgopipe", pageable=True, stage_slots=3),
    "some on disk": policy(
        "two_group", on_disk=frozenset(p.id for p in EXPERTS if p.expert in (3, 4)), stage_slots=3
    ),
    "experts of the processor": policy(
        "two_group", cpu_experts=frozenset(p.id for p in EXPERTS if p.expert in (1, 2))
    ),
    "KV on the device": policy("flexgen", kv_on_device=0.4),
    "layer and head stream too": policy(
        "cgopipe",
        resident=frozenset(p.id for p in page_layout(MODEL) if p.role is Role.EMBED),
        ring_slots=24,
    ),
    "a deep ring": policy("cgopipe", ring_slots=40),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sketch_keeps_homes_residency_and_processors(name: str) -> None:
    p = VARIANTS[name]
    for load in LOADS:
        assert priced(p).played(load).steady == pytest.approx(full(p, load), rel=0.015)


@pytest.mark.parametrize(("schedule", "error"), [("cgopipe", 0.04), ("flexgen", 0.005)])
def test_more_micro_batches_than_are_drawn_are_extended(schedule: str, error: float) -> None:
    """Eight pages between 80 micro-batches do not divide evenly between fewer."""
    p = policy(schedule, micro_batches=80)
    load = LOADS[0]
    assert priced(p).played(load).steady == pytest.approx(full(p, load), rel=error)


def test_dense_shared_and_windowed_layers_count_as_they_are() -> None:
    odd = replace(
        MODEL, shared=SharedExpert(768), dense_layers=1, dense_width=2048, sliding_window=30,
        window_every=2,
    )  # fmt: skip
    p = policy("cgopipe", odd)
    for load in LOADS:
        got = priced(p, odd).played(load).steady
        assert got == pytest.approx(full(p, load, odd), rel=0.015)


@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_totals_are_those_of_the_work_model(name: str) -> None:
    p = policy(name, share=0.2)
    pages = page_layout(MODEL)
    for load in LOADS:
        wanted = WorkModel(MODEL, pages, p).sweep_work(
            generate(MODEL, pages, p), binding_of(load, p)
        )
        got = priced(p).bytes_moved(load)
        for roof, amount in got.items():
            assert amount == pytest.approx(wanted[roof], rel=0.02), roof
        assert {roof for roof in ("h2d", "d2h", "hbm", "dram") if wanted.get(roof)} == got.keys()


loads = st.builds(
    lambda decodes, kv, chunk, chunk_kv: Load(decodes, decodes * kv, chunk, chunk_kv, decodes + 1),
    st.integers(1, 60),
    st.integers(1, 900),
    st.integers(0, 36),
    st.integers(1, 200),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DEVICE_SCHEDULES), loads)
def test_no_price_is_below_its_bound_and_tables_meet_plays(name: str, load: Load) -> None:
    prices = priced(policy(name, share=0.1))
    played, least = prices.played(load), prices.bound(load)
    assert 0 < least <= prices.estimate(load)
    assert least <= prices.seconds(load)
    assert least <= played.steady * (1 + 1e-9)
    assert prices.seconds(load) == pytest.approx(played.steady, rel=0.04)
    assert prices.cold_seconds(load) >= 0.97 * prices.seconds(load)


@pytest.mark.parametrize("name", DEVICE_SCHEDULES)
def test_the_closed_form_is_near_the_play(name: str) -> None:
    for load in LOADS:
        prices = priced(policy(name))
        assert prices.estimate(load) == pytest.approx(prices.played(load).steady, rel=0.15)


def test_more_work_never_takes_less() -> None:
    prices = priced(policy("cgopipe"))
    by_rows = [prices.seconds(Load(n, n * 50, samples=n)) for n in range(1, 97)]
    by_kv = [prices.seconds(Load(40, 40 * n, samples=40)) for n in range(1, 400, 7)]
    for found in (by_rows, by_kv):
        assert all(b >= a * 0.998 for a, b in pairwise(found))
    assert prices.seconds(Load(0)) == 0.0


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(DEVICE_SCHEDULES), st.lists(loads, min_size=2, max_size=5))
def test_what_is_known_of_other_loads_changes_nothing(name: str, asked: list[Load]) -> None:
    """Totals are kept by all that they depend on: rows, draws, or the whole load."""
    kept = priced(policy(name, share=0.1))
    for load in asked:
        kept.bounds(load)
    for load in (*asked, asked[0]._replace(decode_kv=2 * asked[0].decode_kv)):
        fresh = priced(policy(name, share=0.1))
        assert kept.bounds(load) == fresh.bounds(load)
        assert kept.counted(load) == fresh.counted(load)


def test_lanes_add_up_their_tasks() -> None:
    p, load = policy("cgopipe"), LOADS[0]
    lanes = priced(p).lanes(load)
    streamed = sum(page.bytes for page in EXPERTS)
    assert lanes["link"] > streamed / 3e8
    assert lanes.keys() == {"host", "gpu", "d2h", "cpu", "link"}
    assert max(lanes.values()) <= priced(p).played(load).steady


def test_policies_of_one_shape_share_a_sketch() -> None:
    sketches = Sketches()
    a, b = policy("cgopipe"), replace(policy("cgopipe"), max_rows=64, max_seqs=64)
    first = price(MODEL, page_layout(MODEL), a, MACHINE, sketches).seconds(LOADS[0])
    drawn = len(sketches)
    assert price(MODEL, page_layout(MODEL), b, MACHINE, sketches).seconds(LOADS[0]) == first
    assert len(sketches) == drawn


def test_the_census_counts_each_page_once() -> None:
    p = VARIANTS["some on disk"]
    pages = page_layout(MODEL)
    census = take_census(Kinds(MODEL, pages), p)
    assert sum(n for found in census.classes.values() for _, n in found) == len(pages)
    assert census.count(Weights.ON_DISK) == 22
    assert {way for weights, way, _ in census.classes if weights is Weights.EXPERTS} == {Way.PINNED}
    assert sum(group.layers for group in census.layers) == 11


def host_policy() -> tuple[tuple[Page, ...], Policy]:
    pages = page_layout(MODEL)
    held = frozenset(p.id for p in pages if p.expert is None or p.expert < 3)
    return pages, Policy(
        "stream", 96, 64, resident=held, ring_slots=6, slot_bytes=1 << 20, kv_blocks=4000
    )


def test_the_bound_knows_roofs_only() -> None:
    pages, p = host_policy()
    load = Load(64, 64 * 50, samples=64)
    slow = replace(MACHINE, task_seconds=1.0, attention_seconds=2.0)
    quick, late = (price(MODEL, pages, p, each, mean_kv=50) for each in (MACHINE, slow))
    assert late.bound(load) == quick.bound(load)
    assert late.estimate(load) > quick.estimate(load) + 2.0 * MODEL.layers


def test_a_cpu_and_its_disk_answer_the_same_questions() -> None:
    pages, p = host_policy()
    prices = price(MODEL, pages, p, MACHINE, mean_kv=50)
    assert isinstance(prices, HostPrices)
    load = Load(64, 64 * 50, samples=64)
    assert prices.seconds(load) == pytest.approx(
        SteadyPlay(MODEL, pages, p, MACHINE).seconds(load), rel=0.03
    )
    assert prices.bound(load) <= prices.estimate(load) <= prices.seconds(load) * (1 + 1e-9)
    assert prices.seconds(load) < prices.cold_seconds(load)
    read = sum(page.bytes for page in pages if page.id not in p.resident)
    assert prices.bytes_moved(load)["disk"] == pytest.approx(read, rel=0.05)
    assert prices.lanes(load)["cpu"] == SweepTimes(MODEL, pages, p, MACHINE).lanes(load).cpu


def test_a_steady_sweep_has_the_next_one_in_its_tail() -> None:
    """The last of a list would have its tail to itself: it is not the one that is measured."""
    pages, p = host_policy()
    load = Load(64, 64 * 50, samples=64)
    wanted = steady(MODEL, pages, p, MACHINE, load).seconds
    assert SteadyPlay(MODEL, pages, p, MACHINE).seconds(load) == pytest.approx(wanted, rel=1e-9)


REAL = [
    (name, machine, schedule, rows)
    for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b")
    for machine in ("t4", "l4", "a100-40", "rtx-4090")
    for schedule, rows in (("cgopipe", 500), ("two_group", 4000), ("flexgen", 900))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "machine", "schedule", "rows"), REAL)
def test_sketches_and_tables_of_known_models_are_within_one_percent(
    name: str, machine: str, schedule: str, rows: int
) -> None:
    model, hardware = known_model(name).spec, known_hardware(machine).hardware
    pages = page_layout(model)
    experts = [p for p in pages if p.expert is not None]
    held = {p.id for p in pages if p.expert is None} | {p.id for p in experts[::9]}
    most = max(sum(p.layer == n and p.id not in held for p in pages) for n in range(model.layers))
    p = Policy(
        schedule, rows + 512, rows, micro_batches=2 if schedule == "two_group" else 13,
        resident=frozenset(held), ring_slots=2 * most, slot_bytes=1 << 26, kv_blocks=40_000,
        compute="device",
    )  # fmt: skip
    prices = price(model, pages, p, hardware)
    for load in (Load(rows, rows * 333, samples=rows), Load(rows, rows * 77, 400, 100, rows + 4)):
        wanted = steady(model, pages, p, hardware, load).seconds
        assert prices.played(load).steady == pytest.approx(wanted, rel=0.01)
        assert prices.seconds(load) == pytest.approx(wanted, rel=0.01)  # between points of a table
