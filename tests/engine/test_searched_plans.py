"""Plans of the search, and what an enumeration prefers to them, run for real on a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner.problems import Problem, best_of

from headrace.planner.plan import Plan

from .engines import PROMPTS, exactly, greedy, least_memory, open_llm, workload

MANY = [prompt + (5,) * n for n in range(4) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.2, 1.6, 3.0], ids=["tight", "some", "most"])
def test_the_plan_and_the_best_of_an_enumeration_give_the_same_tokens(wide, share):
    job = workload(MANY, 6)
    memory = int(share * least_memory(wide, job, kernels="reference"))
    with open_llm(wide, memory, kernels="reference") as llm:
        plan = llm.plan(job)
        at = llm._situation(job)
        found = Problem(at)
        seconds, policy = best_of(found, 100)
        assert found.seconds(plan.policy) <= 1.02 * seconds
        assert run(llm, plan) == run(llm, enumerated(plan, at, policy))


def enumerated(plan: Plan, at, policy) -> Plan:
    """The policy of the enumeration in place of the plan's."""
    return replace(plan, policy=policy, memory=at.map_of(policy), on_demand_rows=0)


def run(llm, plan: Plan):
    llm.use(plan)
    outputs = llm.generate(MANY, greedy(6))
    assert llm.session.arena.used == plan.memory.arena_bytes
    return exactly(outputs)
