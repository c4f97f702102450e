"""Published runtimes: what they do with a policy, and jobs that run a batch to its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import UsageError
from headrace.planner.batches import simulate_as
from headrace.planner.prices import price
from headrace.planner.simulate import FewRows, simulate
from headrace.planner.sweeps import Load
from headrace.planner.traits import RUNTIMES, Traits, runtime
from headrace.specs.pages import page_layout
from headrace.specs.workload import Workload
from tests.planner.test_prices import MACHINE, MODEL, policy

PAGES = page_layout(MODEL)
JOB = Workload.uniform(96, 20, 8)
PLAIN = Traits("plain", drain=False, own_prefill=False, refill=False)


def play(traits: Traits, job: Workload = JOB, **fields: object):
    return simulate_as(traits, MODEL, PAGES, policy("cgopipe", **fields), MACHINE, job)


def test_a_batch_is_read_once_then_decoded_to_its_end() -> None:
    got = play(PLAIN)
    prices = price(MODEL, PAGES, policy("cgopipe"), MACHINE)
    steps = [Load(96, 96 * (20 + step), samples=96) for step in range(1, 8)]
    wanted = prices.seconds(Load(0, 0, 96 * 20, 20, 96)) + sum(map(prices.seconds, steps))
    assert got.seconds == pytest.approx(wanted, rel=0.01)  # KV is rounded
    assert got.sweeps == 8
    assert got.first_token.p50 == got.first_token.p99 == got.prefill_seconds
    assert got.first_token.mean == pytest.approx(got.prefill_seconds)
    assert got.decode_phase_tokens_per_second * (got.seconds - got.prefill_seconds) == (
        pytest.approx(96 * 8)
    )


def test_the_next_batch_starts_when_the_last_one_has_ended() -> None:
    twice = play(PLAIN, Workload.uniform(192, 20, 8))
    assert twice.seconds == pytest.approx(2 * play(PLAIN).seconds)
    assert twice.first_token.p99 > twice.first_token.mean > play(PLAIN).first_token.mean


def test_without_refill_rows_run_empty_as_requests_end() -> None:
    uneven = Workload((20,) * 96, (2,) * 95 + (60,), assumed=False)
    alone = play(PLAIN, uneven)
    assert alone.sweeps == 60
    refilled = simulate_as(RUNTIMES["headrace"], MODEL, PAGES, policy("cgopipe"), MACHINE, uneven)
    assert refilled.gen_tokens == alone.gen_tokens


def test_each_trait_costs_time() -> None:
    base = play(PLAIN).seconds
    assert play(replace(PLAIN, drain=True)).seconds > 1.005 * base
    assert play(replace(PLAIN, pageable=True)).seconds >= base
    longer = Workload((5,) * 48 + (35,) * 48, (8,) * 96, assumed=False)
    assert play(replace(PLAIN, padded=True), longer).seconds > play(PLAIN, longer).seconds
    stage = replace(MACHINE, roofs={**MACHINE.roofs, "stage": 1e8})
    slow = simulate_as(replace(PLAIN, pageable=True), MODEL, PAGES, policy("cgopipe"), stage, JOB)
    assert slow.bound_by == "stage"
    assert slow.seconds > 2 * base


def test_our_own_traits_are_the_engine_s_batcher() -> None:
    p = policy("cgopipe", compute_rows=96)
    prices = price(MODEL, PAGES, p, MACHINE)
    ours = simulate_as(RUNTIMES["headrace"], MODEL, PAGES, p, MACHINE, JOB)
    assert ours == simulate(FewRows(prices), JOB)
    assert not RUNTIMES["headrace"].is_published


def test_runtimes_take_a_policy_on_as_theirs() -> None:
    p = policy("cgopipe")
    zero = RUNTIMES["zero"].policy(p, "flexgen")
    assert (zero.schedule, zero.kv_on_device, zero.pageable) == ("flexgen", 1.0, False)
    lightning = RUNTIMES["moe-lightning"].policy(p, None)
    assert (lightning.schedule, lightning.pageable, lightning.stage_slots) == ("cgopipe", True, 2)
    assert RUNTIMES["flexgen_c"].policy(p, "flexgen_c").kv_on_device == 0.0
    with pytest.raises(UsageError, match="moe-lightning"):
        runtime("vllm")
