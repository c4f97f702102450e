"""A plan as plain data, kept with a job's output so that the job goes on as it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from headrace.errors import HeadraceError
from headrace.planner.candidates import Situation
from headrace.planner.plan import Plan
from headrace.planner.rules import plan_of
from headrace.specs.policy import PAGE_SETS, Policy

NOTE = "the plan of an earlier run of this job, kept"


def store_plan(plan: Plan, at: Situation, memory: int | None) -> dict[str, Any]:
    """``plan`` for JSON. ``memory`` is the budget that the user set (None: the default)."""
    sets = {name: sorted(getattr(plan.policy, name)) for name in PAGE_SETS}
    policy = {**asdict(plan.policy), **sets}
    return {
        **_asked(at, memory),
        "requests": at.workload.requests,
        "policy": policy,
        "on_demand_rows": plan.on_demand_rows,
    }


def restore_plan(stored: object, at: Situation, memory: int | None) -> Plan | None:
    """The plan that was stored, its memory and its prediction made anew for what is left to do.

    None when it cannot, or should not, be kept: something else was asked for, there is more to
    do than it was made for, a request does not fit its KV, or it does not fit the budget.
    """
    if not isinstance(stored, Mapping):
        return None
    if any(stored.get(name) != value for name, value in _asked(at, memory).items()):
        return None
    try:
        sets = {name: frozenset(stored["policy"][name]) for name in PAGE_SETS}
        policy = Policy(**{**stored["policy"], **sets})
        if stored["requests"] < at.workload.requests or policy.kv_blocks < at.longest_blocks:
            return None
        if at.map_of(policy).total_bytes > at.budget_bytes:
            return None
        plan = plan_of(at, policy, stored["on_demand_rows"])
    except (HeadraceError, KeyError, TypeError, ValueError):
        return None  # not written by this version, or not by us
    return replace(plan, notes=(*plan.notes, NOTE))


def _asked(at: Situation, memory: int | None) -> dict[str, Any]:
    """What a plan must have been made for to be kept."""
    return {
        "memory": memory,
        "overrides": asdict(at.overrides),
        "pages": len(at.pages),
        "page_bytes": sum(page.bytes for page in at.pages),
    }
