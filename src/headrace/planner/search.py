"""The best plan for any machine, with the baselines it was compared with."""

from __future__ import annotations

from dataclasses import replace

from headrace.errors import HeadraceError
from headrace.planner import rules
from headrace.planner.candidates import Situation
from headrace.planner.plan import Baseline, Plan

HOST_BASELINES = ("resident", "one_by_one")


def best_plan(at: Situation) -> Plan:
    """The plan for ``at``, baselines priced beside it; where one of them is faster, it is the plan.

    Raises BudgetError with the smallest budget that works when none does, and UsageError for an
    override that cannot be honoured.
    """
    plan = rules.best_plan(at)
    return replace(plan, baselines=tuple(_baseline(at, name) for name in HOST_BASELINES))


def _baseline(at: Situation, name: str) -> Baseline:
    try:
        asked = replace(at, overrides=replace(at.overrides, schedule=name))
        plan = rules.best_plan(asked)
    except HeadraceError as refusal:
        return Baseline(name, refusal=str(refusal))
    return Baseline(name, plan.policy, plan.prediction)
