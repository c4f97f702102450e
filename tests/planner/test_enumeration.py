"""The search finds what an enumeration of a finer grid finds, within 2 %."""

from __future__ import annotations

import pytest
from planner.problems import Problem, best_of, problem

from headrace.planner.search import best_plan

WITHIN = 1.02


@pytest.mark.parametrize(("seed", "device"), [(3, False), (3, True)])
def test_the_plan_is_within_two_percent_of_a_finer_enumeration(seed, device):
    judge(problem(seed, device=device), most=60)


@pytest.mark.parametrize("seed", range(10))
def test_small_problems_beside_a_device_have_plans_that_fit(seed):
    found = problem(seed, device=True)
    plan = best_plan(found.at)
    assert plan.memory.fits
    assert found.seconds(plan.policy) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", [False, True], ids=["processor", "device"])
@pytest.mark.parametrize("seed", range(10))
def test_twenty_plans_are_within_two_percent_of_a_finer_enumeration(seed, device):
    judge(problem(seed, device=device), most=600)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", [False, True], ids=["processor", "device"])
@pytest.mark.parametrize("seed", range(20, 23))
def test_plans_of_longer_jobs_are_within_two_percent_of_a_finer_enumeration(seed, device):
    """By the route of real jobs: their course says what is played, not a play of everything."""
    found = problem(seed, device=device, long=True)
    assert not found.at.is_small
    judge(found, most=250 if device else 500)


def judge(found: Problem, most: int) -> None:
    plan = best_plan(found.at)
    own = found.seconds(plan.policy)
    best, policy = best_of(found, most)
    assert own <= WITHIN * best, (plan.policy, policy)
