"""A plan as plain data, kept with a job's output so that the job goes on as it began.

What comes back is data that anybody may have written. Of a policy only the free choices are
taken, each within its range; all else must be what this planner would have set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from headrace.errors import DocumentError, HeadraceError
from headrace.planner.candidates import LEAST_SLOTS, MOST_ROWS, ROWS_PER_MICRO_BATCH, Situation
from headrace.planner.fields import known_fields, number, short, switch, text, whole
from headrace.planner.plan import Plan
from headrace.planner.rules import plan_of
from headrace.specs.policy import PAGE_SETS, SCHEDULES, Policy

NOTE = "the plan of an earlier run of this job, kept"

_KINDS = {field.name: field.type for field in fields(Policy)}

MOST_LANES = 64
"""Disk lanes of a stored plan: each is a thread."""

MOST = 1 << 40
"""Of any stored number: what it sizes is compared with the budget afterwards."""


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
    do than it was made for, a request does not fit its KV, it does not fit the budget, or it is
    no plan of this planner's.
    """
    if not isinstance(stored, Mapping):
        return None
    if any(stored.get(name) != value for name, value in _asked(at, memory).items()):
        return None
    try:
        policy = _policy(stored["policy"], at)
        threshold = whole(stored["on_demand_rows"], "on_demand_rows", 0, MOST)
        if whole(stored["requests"], "requests", 0, MOST) < at.workload.requests:
            return None
        if policy.kv_blocks < at.longest_blocks or not _ours(policy, at):
            return None
        if at.map_of(policy).total_bytes > at.budget_bytes:
            return None
        plan = plan_of(at, policy, threshold)
    except (HeadraceError, KeyError):
        return None  # not written by this version, or not by us
    return replace(plan, notes=(*plan.notes, NOTE))


def _policy(stored: object, at: Situation) -> Policy:
    """A policy whose every field has its type and range. Raises DocumentError."""
    found = known_fields(stored, "policy", _KINDS)
    if missing := _KINDS.keys() - found.keys():
        raise DocumentError("fields of policy", expected=", ".join(sorted(missing)))
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name in PAGE_SETS:
            values[name] = _pages(value, name, at)
        else:
            values[name] = _plain(value, name)
    return Policy(**values)


def _pages(value: object, name: str, at: Situation) -> frozenset[int]:
    if not isinstance(value, list):
        raise DocumentError(name, expected="a list of pages", got=short(value))
    pages = frozenset(whole(page, f"a page of {name}", 0, MOST) for page in value)
    if not at.residency.everything() >= pages:
        raise DocumentError(name, expected="pages that the model has")
    return pages


def _plain(value: object, name: str) -> Any:
    """``value``, if it is of the kind of the field: text, a switch, a share or a number."""
    kind = _KINDS[name]
    if kind == "str":
        return text(value, name)
    if kind == "bool":
        return switch(value, name)
    return number(value, name, 0.0, 1.0) if kind == "float" else whole(value, name, 0, MOST)


def _ours(policy: Policy, at: Situation) -> bool:
    """Whether everything but the free choices is as this planner sets it."""
    asked, slot = at.overrides, at.residency.slot_bytes(policy.resident)
    most_rows = max(MOST_ROWS, asked.max_rows or 0, (asked.max_seqs or 0) + asked.chunk)
    given = ("chunk", "kv_block", "kv_dtype", "threads", "kernels", "activations")
    return (
        policy.resident.issuperset(page.id for page in at.residency.final)
        and all(getattr(policy, name) == getattr(asked, name) for name in given)
        and policy.slot_bytes == slot
        and (policy.ring_slots > 0) == (slot > 0)
        and policy.ring_slots <= max(len(at.pages), LEAST_SLOTS, asked.ring_slots or 0)
        and (policy.schedule == "resident") <= (slot == 0)
        and policy.schedule in ((asked.schedule, "resident") if asked.schedule else SCHEDULES)
        and policy.max_rows <= most_rows
        and policy.micro_batches
        <= (asked.micro_batches or -(-policy.max_rows // ROWS_PER_MICRO_BATCH))
        and 1 <= policy.disk_lanes <= MOST_LANES
    )


def _asked(at: Situation, memory: int | None) -> dict[str, Any]:
    """What a plan must have been made for to be kept."""
    return {
        "memory": memory,
        "overrides": asdict(at.overrides),
        "pages": len(at.pages),
        "page_bytes": sum(page.bytes for page in at.pages),
    }
