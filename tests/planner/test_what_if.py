"""Changes are the same job planned anew; what gains little is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.planner.candidates import Situation, smallest
from headrace.planner.plan import Overrides
from headrace.planner.search import best_plan
from headrace.planner.what_if import Priced, advice, changes, price_changes, quantised
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware, known_model, known_models
from headrace.specs.workload import Workload


def situation(machine: str) -> Situation:
    model = replace(known_model("mixtral-8x7b").spec, layers=2)
    hardware = known_hardware(machine).hardware
    at = Situation(model, page_layout(model), None, hardware, Workload.uniform(8, 32, 8), 0)
    return replace(at, budget_bytes=2 * at.map_of(smallest(at)).total_bytes)


def test_a_faster_disk_is_worth_it_where_the_disk_bounds():
    at = situation("cpu-2core")
    found = {each.name: each for each in price_changes(at, best_plan(at))}
    disk = found["a disk twice as fast"]
    assert disk.worth
    assert disk.gain == pytest.approx(1 - disk.seconds / best_plan(at).prediction.seconds)
    assert found["int8 weights (headrace quantize)"].gain > 0.2


def test_a_change_takes_what_the_plan_made_for_it_takes():
    """Leaving out baselines that are far behind changes no plan."""
    at = situation("t4")
    plan = best_plan(at)
    for change, found in zip(changes(at), _in_order(price_changes(at, plan), at), strict=True):
        assert found.seconds == pytest.approx(best_plan(change.at).prediction.seconds, rel=0.01)


def _in_order(priced: list[Priced], at: Situation) -> list[Priced]:
    by_name = {each.name: each for each in priced}
    return [by_name[change.name] for change in changes(at)]


def test_links_and_cards_are_priced_beside_an_accelerator():
    host, t4 = situation("cpu-2core"), situation("t4")
    assert not any("PCIe" in c.name for c in changes(host))
    assert any("PCIe" in c.name for c in changes(t4))
    cards = [c.at.hardware for c in changes(t4) if c.name.startswith("accelerator")]
    assert all(card.capacity["device"] > t4.hardware.capacity["device"] for card in cards)
    assert all(card.capacity["host"] == t4.hardware.capacity["host"] for card in cards)


def test_every_known_model_has_changes():
    machine = known_hardware("laptop-nvme").hardware
    for known in known_models().values():
        job = Workload.uniform(2, 4, 2)
        at = Situation(known.spec, page_layout(known.spec), None, machine, job, 10**9, Overrides())
        assert len(list(changes(at))) >= 5


def test_quantised_models_are_smaller():
    spec = known_model("olmoe-1b-7b").spec
    sizes = [
        sum(page.bytes for page in page_layout(m))
        for m in (spec, quantised(spec, "i8"), quantised(spec, "u4"))
        if m is not None
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.35 * sizes[0]
    assert quantised(replace(spec, expert_dtype="mxfp4"), "i8") is None
    assert quantised(quantised(spec, "i8"), "u4") is None


def test_advice_names_the_best_and_what_not_to_buy():
    priced = [
        Priced("more disk", True, 50.0, 0.5, "cpu"),
        Priced("more memory", True, 99.0, 0.01, "disk"),
        Priced("int8", False, 99.0, 0.01, "disk"),
        Priced("a card", True, refusal="does not fit"),
    ]
    said = advice(priced)
    assert said == (
        "Most gained by more disk: 50.0 s, 50% less. Do not buy (less than 3% gained): more memory."
    )
    assert advice(priced[2:]) == "No single change gains 3%."
