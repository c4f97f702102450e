"""What a sweep's routing may look like before it is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from headrace.planner.bindings import typical_routing
from headrace.planner.played import PlayedOverlap
from headrace.planner.sweeps import SweepTimes, as_run
from headrace.planner.timed import name_of
from headrace.schedule.routing import visit_chance
from headrace.specs.hardware import Hardware
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware, known_model

OLMOE = known_model("olmoe-1b-7b").spec
DEEPSEEK = known_model("deepseek-moe-16b").spec
STOCK = known_hardware("cpu-2core").hardware


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_whole_experts_are_visited_as_many_as_on_average(rows):
    even = {layer: frozenset(range(0, OLMOE.experts, 2)) for layer in range(OLMOE.layers)}
    routed = typical_routing(OLMOE, rows, even)
    assert routed.keys() == set(range(OLMOE.layers))
    visited = [sum(1 for count in counts if count) for counts in routed.values()]
    mean = OLMOE.experts * visit_chance(OLMOE.experts, OLMOE.top_k, rows)
    assert math.floor(mean) <= min(visited) <= max(visited) <= math.ceil(mean) + 1, "one in part"
    assert sum(visited) / OLMOE.layers == pytest.approx(mean, abs=2 / OLMOE.layers)
    for counts in routed.values():
        assert sum(counts) == pytest.approx(rows * OLMOE.top_k)
    read = [sum(min(1, counts[e]) for e in even[layer]) for layer, counts in routed.items()]
    whole = sum(1 for counts in routed.values() for count in counts if count >= 1)
    assert sum(read) == pytest.approx(whole / 2, abs=0.51), "half of them, in all"
    assert rows > 5 or len(set(read)) > 1, "not in every layer"


@pytest.mark.parametrize(("kept", "wanted"), [(64, 0), (0, 8 * 16), (63, 2), (1, 126), (61, 6)])
def test_of_experts_that_are_read_as_many_are_visited_as_on_average(kept, wanted):
    read = {layer: frozenset(range(kept, OLMOE.experts)) for layer in range(OLMOE.layers)}
    routed = typical_routing(OLMOE, 1, read)
    visited = sum(min(1, counts[e]) for layer, counts in routed.items() for e in read[layer])
    assert visited == pytest.approx(wanted)


def test_of_few_layers_a_part_of_an_expert_is_read():
    """An eighth of a read a layer: of three layers more than none and less than one."""
    three = replace(OLMOE, layers=3)
    few = {layer: frozenset({0}) for layer in range(3)}
    routed = typical_routing(three, 1, few)
    assert sum(min(1, counts[0]) for counts in routed.values()) == pytest.approx(3 * 8 / 64)
    assert all(sum(counts) == pytest.approx(OLMOE.top_k) for counts in routed.values())


def test_dense_layers_route_nothing_and_all_rows_visit_shared_experts():
    routed = typical_routing(DEEPSEEK, 3, {})
    assert 0 not in routed
    assert all(counts[DEEPSEEK.experts] == 3 for counts in routed.values())


def on_demand(schedule: str = "on_demand") -> tuple[Policy, tuple]:
    pages = page_layout(OLMOE)
    experts = frozenset(page.id for page in pages if page.expert is not None)
    slot = max(page.bytes for page in pages)
    policy = Policy(
        schedule=schedule,
        max_rows=64,
        max_seqs=8,
        resident=frozenset(page.id for page in pages) - experts,
        ring_slots=16,
        slot_bytes=slot,
        kv_blocks=64,
    )
    return policy, pages


def test_reads_that_wait_for_the_router_hide_behind_little():
    policy, pages = on_demand()
    overlap = PlayedOverlap(OLMOE, pages, policy, STOCK)
    lanes = SweepTimes(OLMOE, pages, policy, STOCK)
    assert overlap(1) > 1.02, "few whole pages: arithmetic waits for each"
    assert lanes.hardware is STOCK


def test_schedules_that_read_otherwise_have_curves_of_their_own():
    alone, now_and_then = name_of("read_page", "one_by_one"), name_of("expert", "on_demand")
    curves = {"read_page": ((1.0, 0.5),), alone: ((1.0, 0.8),), now_and_then: ((1.0, 0.3),)}
    curves["expert"] = ((1.0, 0.2),)
    machine = Hardware("m", STOCK.roofs, lane_rate=1e9, efficiency=curves)

    def share(schedule: str, op: str) -> float:
        return as_run(machine, schedule).efficiency_of(op, 1)

    assert [share("one_by_one", op) for op in ("read_page", "expert")] == [0.8, 0.2]
    assert [share("on_demand", op) for op in ("read_page", "expert")] == [0.5, 0.3]
    assert as_run(machine, "stream") is machine
