"""The laws that schedules and machines keep together, over drawn cases."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import numpy as np
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from terms import Terms
from toy import Toy
from toy_model import plain_logits

from headrace.errors import TaskError
from headrace.machines.orders import Order, TaskGraph, breaking, delaying, list_order, shuffled
from headrace.machines.stepper import Stepper
from headrace.machines.threads import Threads
from headrace.schedule.task import Op, Schedule
from headrace.specs.policy import DEVICE_SCHEDULES, SCHEDULES

TASKS_TO_RUN = 20_000
"""How many tasks law 5 runs per drawn case, about: each wait costs the whole list, twice."""


@settings(max_examples=40, deadline=None)
@given(cases())
def test_law_0_the_list_in_order_is_the_plain_forward_pass(case: Case) -> None:
    toy = Toy(case)
    toy.run(Stepper(toy.bodies, toy.memory.get))
    for seq, tokens in enumerate(toy.requests.tokens):
        plain = plain_logits(case.model, toy.weights, tokens)
        for _, position, token, row in (each for each in toy.requests.log if each[0] == seq):
            np.testing.assert_allclose(row, plain[position], rtol=1e-9, atol=1e-9)
            assert token == tokens[position + 1] == plain[position].argmax()


@settings(max_examples=25, deadline=None)
@given(cases(), st.integers(0, 99))
def test_law_1_every_legal_order_and_the_threads_agree_bit_for_bit(case: Case, seed: int) -> None:
    expected = toy_outcome(case, list_order)
    assert toy_outcome(case, shuffled(Random(seed))) == expected
    toy = Toy(case)
    with Threads(toy.bodies, toy.memory.get, time.perf_counter, inline={"host": "cpu"}) as threads:
        toy.run(threads)
    assert toy.outcome() == expected


@settings(max_examples=20, deadline=None)
@given(cases(schedules=("device two_group",)))
def test_schedules_of_one_policy_agree_with_each_other(case: Case) -> None:
    outcomes = []
    on_host = {"compute": "host", "on_disk": frozenset(), "pageable": False, "stage_slots": 0}
    on_host["cpu_experts"] = frozenset()
    names = [(name, on_host) for name in SCHEDULES] + [(name, {}) for name in DEVICE_SCHEDULES]
    for name, fields in names:
        if name == "resident":
            everything = frozenset(p.id for p in case.pages)
            fields = {**fields, "resident": everything, "cpu_experts": frozenset()}
        fields = {"ring_slots": max(2, case.policy.ring_slots), **fields}
        policy = replace(case.policy, schedule=name, **fields)
        toy = Toy(replace(case, policy=policy))
        toy.run(Stepper(toy.bodies, toy.memory.get, poison=toy.poison))
        outcomes.append((toy.requests.tokens, [entry[3] for entry in toy.requests.log]))
    for tokens, rows in outcomes[1:]:
        assert tokens == outcomes[0][0]
        np.testing.assert_allclose(rows, outcomes[0][1], rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(cases(every_expert=True), st.data())
def test_law_5_no_wait_can_be_spared(case: Case, data: st.DataObject) -> None:
    """On terms; and each wait kept is enough, whatever is late. Long lists are sampled."""
    schedules = case.schedules()
    graph = TaskGraph.of(schedules)
    stride = 1 + len(graph.tasks) * len(graph.waits) // TASKS_TO_RUN
    expected = terms_outcome(schedules, list_order)
    for wait in graph.waits[data.draw(st.integers(0, stride - 1)) :: stride]:
        assert terms_outcome(schedules, breaking(wait)) != expected, wait
        assert terms_outcome(schedules, delaying(wait.before)) == expected, wait


@settings(max_examples=12, deadline=None)
@given(cases(every_expert=True, max_layers=2, max_experts=3), st.data())
def test_law_5_poison_finds_a_missing_wait_in_numbers(case: Case, data: st.DataObject) -> None:
    """But for barriers, which keep steps apart that could do without, and loads of a cache that is
    still empty, which change no number: on terms, law 5 holds for both."""
    expected = toy_outcome(case, list_order)
    graph = TaskGraph.of(case.schedules())
    silent = (Op.BARRIER, Op.LOAD_KV)
    steps = [any(graph.tasks[i].op in silent for i in wait) for wait in graph.waits]
    waits = [wait for wait, step in zip(graph.waits, steps, strict=True) if not step]
    start = data.draw(st.integers(0, max(0, len(waits) - 30)))
    for wait in waits[start : start + 30]:
        assert toy_outcome(case, delaying(wait.before)) == expected, wait
        try:
            outcome = toy_outcome(case, breaking(wait))
        except TaskError:
            continue
        assert outcome != expected, (graph.tasks[wait.before], graph.tasks[wait.after])


@settings(max_examples=15, deadline=None)
@given(cases(schedules=("on_demand",)))
def test_law_8_an_expert_without_tokens_changes_none(case: Case) -> None:
    """Its page is never read: what its slot holds, poison even, reaches no token."""
    toy = Toy(case)
    toy.run(Stepper(toy.bodies, toy.memory.get, poison=toy.poison))
    streamed = Toy(replace(case, policy=replace(case.policy, schedule="stream")))
    streamed.run(Stepper(streamed.bodies, streamed.memory.get))
    assert toy.outcome() == streamed.outcome()


def toy_outcome(case: Case, order: Order) -> tuple[object, ...]:
    toy = Toy(case)
    toy.run(Stepper(toy.bodies, toy.memory.get, order, poison=toy.poison))
    return toy.outcome()


def terms_outcome(schedules: list[Schedule], order: Order) -> tuple[int, ...]:
    terms = Terms()
    stepper = Stepper(terms.bodies, terms.view, order, poison=terms.poison)
    for schedule in schedules:
        stepper.append(schedule, None)
    stepper.run()
    return terms.outcome()
