"""What a run beside an accelerator takes of each tier: device, pinned and pageable host memory.

Sizes are those of ``schedule.device_sizes``, for the buffers that the policy's schedule touches;
weights are counted page by page, everything else does not depend on which pages are where.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.planner.memory_map import MemoryMap, TierUse, arena_bytes
from headrace.schedule.device import FLIGHTS, KV_SLOTS
from headrace.schedule.device_sizes import AlikeBuffers, working_buffers
from headrace.schedule.tally import Kind, Kinds
from headrace.specs.pages import Role
from headrace.specs.policy import Policy
from headrace.specs.scratch import READ_SLACK

TIERS = ("device", "pinned", "host")

_PART_OF = {
    "kv": "kv cache",
    "kv_part": "kv cache",
    "kv_slot": "kv in transit",
    "kv_new": "kv in transit",
    "scratch": "scratch",
    "scratch_host": "scratch",
}
_ON_CPU = ("qkv", "qkv_host", "attended_host")
_BESIDE = ("normed_host", "routing_host", "partial_host", "partial")

Parts = dict[str, dict[str, int]]
"""Tier -> part -> bytes, alignment included."""


@dataclass(frozen=True)
class Budgets:
    """Bytes that may be taken of each tier; None: as much as it takes. Pinned memory is part of
    the host's; ``device`` is that of all ``devices``."""

    device: int
    host: int
    pinned: int | None = None
    disk: int | None = None
    devices: int = 1


def device_map(kinds: Kinds, policy: Policy, budgets: Budgets) -> MemoryMap:
    """The map of a run under ``policy``: host memory, and the other tiers beside it."""
    parts = parts_of(kinds, policy, budgets.devices)
    for tier, weights in _weights(kinds, policy).items():
        parts[tier] |= weights
    totals = {tier: sum(parts[tier].values()) for tier in TIERS}
    disk = sum(kind.page.bytes * len(kind.ids & policy.on_disk) for kind in kinds.all)
    pinned = budgets.host if budgets.pinned is None else min(budgets.pinned, budgets.host)
    beside = {
        "device": TierUse(totals["device"], budgets.device, parts["device"]),
        "pinned": TierUse(totals["pinned"], pinned, parts["pinned"]),
        "disk": TierUse(
            disk, disk if budgets.disk is None else budgets.disk, {"weights": disk} if disk else {}
        ),
    }
    joined = {f"pinned {name}": count for name, count in parts["pinned"].items()}
    return MemoryMap({**parts["host"], **joined}, 0, budgets.host, beside)


def parts_of(kinds: Kinds, policy: Policy, devices: int = 1) -> Parts:
    """Everything but weights, by tier; of all devices together."""
    touched = _Touched(kinds, policy)
    parts: Parts = {tier: {} for tier in TIERS}
    for alike in working_buffers(kinds.model, policy, devices):
        count = touched.count(alike)
        if count:
            part, of_tier = _PART_OF.get(alike.name, "activations"), parts[alike.tier]
            of_tier[part] = of_tier.get(part, 0) + count * arena_bytes(alike.bytes)
    return parts


class _Touched:
    """Which buffers the tasks of a policy's schedule read or write."""

    def __init__(self, kinds: Kinds, policy: Policy) -> None:
        model = kinds.model
        on_cpu = not policy.attention_on_device
        moves = policy.schedule == "flexgen" and policy.device_kv_parts < policy.micro_batches
        cut = [kind for kind in kinds.all if kind.page.role is Role.EXPERT_UP]
        rows = kinds.rows_read(policy)
        beside = bool(policy.cpu_experts)
        self._when = {
            "rows": rows,
            "rows_sent": rows,
            "q": not on_cpu,
            "routing": model.is_moe,
            "inter": any(kind.ids - policy.cpu_experts for kind in cut),
            "scratch_host": on_cpu or beside,
            "kv": on_cpu or policy.schedule == "resident",
            "kv_part": policy.schedule == "flexgen",
            "kv_slot": moves,
            "kv_new": moves,
            **dict.fromkeys(_ON_CPU, on_cpu),
            **dict.fromkeys(_BESIDE, beside),
            "routing_host": beside and model.is_moe,
        }
        flights = range(min(FLIGHTS, model.layers * policy.micro_batches))
        self._most = dict.fromkeys((*_ON_CPU, *_BESIDE), len(flights))
        self._most["attended"] = len(flights) if on_cpu else 1
        if moves:
            self._most |= dict.fromkeys(("kv_slot", "kv_new"), _slots_used(policy, model.layers))

    def count(self, alike: AlikeBuffers) -> int:
        """How many of ``alike`` a task touches: the first of them."""
        if not self._when.get(alike.name, True):
            return 0
        count = len(alike.indices)
        return min(count, self._most.get(alike.name, count))


def _slots_used(policy: Policy, layers: int) -> int:
    """Slots for KV on its way that are ever used: both, unless parts that move are few."""
    parts, stay = policy.micro_batches, policy.device_kv_parts
    used = {(layer * parts + mb) % KV_SLOTS for layer in range(layers) for mb in range(stay, parts)}
    return len(used)


def _weights(kinds: Kinds, policy: Policy) -> Parts:
    streamed = list(kinds.streamed(policy))
    rows = kinds.rows_read(policy)
    unused = Role.EMBED if rows else None  # the table is looked up on the host
    held = _bytes(
        (kind, len(kind.ids if kind.page.role is Role.FINAL else kind.ids & policy.resident))
        for kind in kinds.all
        if kind.page.role is not unused
    )
    device = {"resident weights": held}
    if streamed:
        device["ring"] = policy.ring_slots * arena_bytes(policy.slot_bytes)
    staged = [(k, ids if policy.pageable else ids & policy.on_disk) for k, ids in streamed]
    waiting = _bytes((kind, len(ids - policy.on_disk)) for kind, ids in streamed)
    largest = max((kind.page.bytes for kind, ids in staged if ids), default=None)
    pinned: dict[str, int] = {}
    host = {"weights": _bytes((kind, len(kind.ids & policy.cpu_experts)) for kind in kinds.all)}
    host["weights"] += waiting if policy.pageable else 0
    if not policy.pageable:
        pinned["weights"] = waiting
    if largest is not None:
        pinned["staging"] = policy.stage_slots * arena_bytes(largest + READ_SLACK)
    if rows:  # rows of the table are looked up in memory
        table = [(kind, kind.ids - policy.on_disk) for kind in kinds.table]
        if not policy.pageable or not kinds.model.tied_embeddings:
            host["table"] = _bytes((kind, len(ids)) for kind, ids in table)
        else:  # a tied head that streams from pageable memory is there already
            host["table"] = _bytes((kind, len(ids & policy.resident)) for kind, ids in table)
    return {"device": device, "pinned": pinned, "host": host}


def _bytes(counts: Iterable[tuple[Kind, int]]) -> int:
    return sum(arena_bytes(kind.page.bytes) * count for kind, count in counts)
