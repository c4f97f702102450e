"""What a run takes of each tier's budget, buffer by buffer, exactly as its arena hands it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.memory.rows import BOUNCE_BYTES
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.scratch import torch_bytes
from headrace.specs.units import format_bytes

ARENA_ALIGN = 4096
"""Every buffer of an arena starts at a multiple of this many bytes."""

_KINDS = {
    "page": "resident weights",
    "slot": "ring",
    "kv": "kv cache",
    "scratch": "scratch",
}


@dataclass(frozen=True)
class TierUse:
    """Bytes that a run takes of one tier, and how many it may; ``parts`` add up to the former."""

    planned_bytes: int
    capacity_bytes: int
    parts: Mapping[str, int]

    @property
    def fits(self) -> bool:
        """Whether the run keeps within the tier."""
        return self.planned_bytes <= self.capacity_bytes


@dataclass(frozen=True)
class MemoryMap:
    """Bytes of the host tier. ``parts`` names what the arena holds (alignment included);
    ``margin_bytes`` is kept free for what the arithmetic library allocates beside it. ``beside``
    holds the other tiers of a machine with an accelerator: ``device``, ``pinned`` (part of the
    host's bytes as well) and ``disk``."""

    parts: Mapping[str, int]
    margin_bytes: int
    budget_bytes: int
    beside: Mapping[str, TierUse] = field(default_factory=dict)

    @property
    def tiers(self) -> Mapping[str, TierUse]:
        """Tier -> what the run takes of it."""
        parts = {**self.parts, "margin": self.margin_bytes}
        return {"host": TierUse(self.total_bytes, self.budget_bytes, parts), **self.beside}

    @property
    def fits(self) -> bool:
        """Whether every tier is kept within."""
        return all(use.fits for use in self.tiers.values())

    @property
    def arena_bytes(self) -> int:
        """Capacity of the arena that holds every buffer."""
        return sum(self.parts.values())

    @property
    def total_bytes(self) -> int:
        """What the run takes at most."""
        return self.arena_bytes + self.margin_bytes

    @property
    def spare_bytes(self) -> int:
        """Budget that nothing uses."""
        return self.budget_bytes - self.total_bytes

    def lines(self) -> list[tuple[str, str]]:
        """(name, size) rows to print, the budget last."""
        rows = [*self.parts.items(), ("margin", self.margin_bytes)]
        rows += [("unused", self.spare_bytes), ("budget", self.budget_bytes)]
        return [(name, format_bytes(count)) for name, count in rows]


def memory_map(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    page_bytes: Mapping[int, int] | None = None,
    budget_bytes: int = 0,
) -> MemoryMap:
    """The map of a run under ``policy``; ``page_bytes`` as in ``schedule.sizes``."""
    sizes = buffer_sizes(model, pages, policy, page_bytes)
    return map_of_sizes(model, policy, sizes, budget_bytes)


def map_of_sizes(
    model: ModelSpec,
    policy: Policy,
    sizes: Mapping[Buffer, Size],
    budget_bytes: int,
    weights: int = 0,
    ring: int = 0,
) -> MemoryMap:
    """The map of buffers of ``sizes``, beside weights and a ring that were counted before."""
    parts = dict.fromkeys([*_KINDS.values(), "activations"], 0)
    parts["resident weights"], parts["ring"] = weights, ring
    for buffer, size in sizes.items():
        parts[_KINDS.get(buffer.name, "activations")] += arena_bytes(size.bytes)
    margin = torch_bytes(model, policy) + (BOUNCE_BYTES if Buffer("rows") in sizes else 0)
    return MemoryMap(parts, margin, budget_bytes)


def arena_bytes(count: int) -> int:
    """Bytes an arena spends on a buffer of ``count`` bytes."""
    return -(-count // ARENA_ALIGN) * ARENA_ALIGN
