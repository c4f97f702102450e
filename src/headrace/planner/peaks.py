"""Bytes per tier that a policy's buffers take, and whether a machine has them."""

from __future__ import annotations

from typing import NamedTuple

from headrace.planner.played import first_layers
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy


class Peak(NamedTuple):
    """Bytes that a tier's buffers take together; ``capacity_bytes`` None where it is not known."""

    planned_bytes: int
    capacity_bytes: int | None


def tier_peaks(
    model: ModelSpec, pages: tuple[Page, ...], policy: Policy, hardware: Hardware
) -> dict[str, Peak]:
    """Tier -> its peak: of every buffer that a schedule touches, at the policy's maxima; of all
    devices together. Pinned memory is part of the host's, whose capacity it shares where it has
    none of its own."""
    touched = _touched(*first_layers(min(model.layers, 3), model, pages, policy))
    bytes_of: dict[str, int] = {}
    for buffer, size in buffer_sizes(model, pages, policy, devices=hardware.devices).items():
        if size.bytes and _pattern(buffer) in touched:
            bytes_of[size.tier] = bytes_of.get(size.tier, 0) + size.bytes
    if "pinned" in bytes_of:
        bytes_of["host"] = bytes_of.get("host", 0) + bytes_of["pinned"]
    disk = sum(page.bytes for page in pages if page.id in policy.on_disk)
    found = bytes_of | ({"disk": disk} if disk else {})
    return {tier: Peak(count, hardware.capacity.get(tier)) for tier, count in found.items()}


def _touched(model: ModelSpec, pages: tuple[Page, ...], policy: Policy) -> set[Buffer]:
    """Patterns of what schedules of ``policy`` touch: those of a few layers tell."""
    first = generate(model, pages, policy)
    second = generate(model, pages, policy, next_phase(pages, policy))
    return {_pattern(buffer) for schedule in (first, second) for buffer in schedule.sizes}


def _pattern(buffer: Buffer) -> Buffer:
    """All buffers that a layer or page more would add are one."""
    return Buffer(buffer.name) if buffer.name in _BY_LAYER else buffer


_BY_LAYER = ("page", "slot", "home", "pinned", "kv", "kv_part")
