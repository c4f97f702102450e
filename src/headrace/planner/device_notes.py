"""What a plan beside an accelerator decided, in words."""

from __future__ import annotations

from headrace.planner.candidates import Situation
from headrace.schedule.tally import Kinds
from headrace.specs.policy import Policy
from headrace.specs.units import format_bytes


def device_notes(at: Situation, policy: Policy) -> tuple[str, ...]:
    """Notes of a plan whose compute is on the device."""
    experts = frozenset().union(*(k.ids for k in at.kinds.all if k.page.expert is not None))
    held = len(experts & policy.resident)
    notes = [f"{held} of {len(experts)} expert pages stay on the accelerator"]
    streamed = sum(kind.page.bytes * len(ids) for kind, ids in at.kinds.streamed(policy))
    if streamed:
        notes.append(
            f"{format_bytes(streamed)} cross the link per sweep through {policy.ring_slots} slots "
            f"of {format_bytes(policy.slot_bytes)}"
        )
        notes.append(f"arithmetic hides behind transfers up to {policy.compute_rows} rows a sweep")
    if policy.cpu_experts:
        share = format_bytes(_bytes(at.kinds, policy.cpu_experts))
        notes.append(f"the processor multiplies {share} of experts beside the accelerator")
    if policy.on_disk:
        notes.append(f"{format_bytes(_bytes(at.kinds, policy.on_disk))} of them come from disk")
    where = "accelerator" if policy.attention_on_device else "processor"
    notes.append(f"the {where} attends")
    if not at.hardware.measured:
        notes.append("the machine's rates are stock figures, not measured here")
    return tuple(notes)


def _bytes(kinds: Kinds, ids: frozenset[int]) -> int:
    return sum(kind.page.bytes * len(kind.ids & ids) for kind in kinds.all)
