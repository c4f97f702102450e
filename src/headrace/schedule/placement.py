"""Where each page's bytes are during one sweep: in memory for good, or passing through the ring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from headrace.errors import UsageError
from headrace.schedule.task import Buffer
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy


@dataclass(frozen=True)
class Placement:
    """Pages of ``model`` under ``policy`` in a sweep whose first streamed page takes slot
    ``phase`` of the ring.

    The embedding table is read by row unless all of its pages are resident, so its pages never
    stream; the final norm is always resident. Raises UsageError when pages must stream and the
    policy has no ring, or no lane, to stream them through.
    """

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    phase: int = 0

    def __post_init__(self) -> None:
        for name in ("ring_slots", "disk_lanes"):
            if self.streamed and getattr(self.policy, name) < 1:
                raise UsageError(
                    f"{len(self.streamed)} pages must stream",
                    expected=f"policy {name} of at least 1",
                    got=getattr(self.policy, name),
                )

    @cached_property
    def streamed(self) -> tuple[Page, ...]:
        """Pages that cross the ring in this sweep, in order of use."""
        return streamed_pages(self.pages, self.policy)

    @cached_property
    def home(self) -> Mapping[int, Buffer]:
        """Page id -> the buffer that holds it: its own, or the ring slot it passes through."""
        homes = {page.id: Buffer("page", page.id) for page in self.pages}
        slots = self.policy.ring_slots
        for index, page in enumerate(self.streamed):
            homes[page.id] = Buffer("slot", (self.phase + index) % slots)
        return homes

    @cached_property
    def embed(self) -> tuple[Page, ...]:
        """Row blocks of the embedding table (the head's, when tied)."""
        return self._role(Role.HEAD if self.model.tied_embeddings else Role.EMBED)

    @cached_property
    def rows_from_disk(self) -> bool:
        """Whether embedding rows are read by row."""
        return any(page.id not in self.policy.resident for page in self.embed)

    @cached_property
    def layers(self) -> tuple[Page, ...]:
        """The page of each layer's norms, attention and router."""
        return self._role(Role.LAYER)

    @cached_property
    def experts(self) -> tuple[tuple[Page, ...], ...]:
        """Expert pages of each layer in ascending order of expert, up before down."""
        return tuple(
            tuple(page for page in self.pages if page.layer == layer and page.expert is not None)
            for layer in range(self.model.layers)
        )

    @cached_property
    def final(self) -> Page:
        """The page of the final norm."""
        return self._role(Role.FINAL)[0]

    @cached_property
    def head(self) -> tuple[Page, ...]:
        """Row blocks of the head."""
        return self._role(Role.HEAD)

    def _role(self, role: Role) -> tuple[Page, ...]:
        return tuple(page for page in self.pages if page.role is role)


def streamed_pages(pages: tuple[Page, ...], policy: Policy) -> tuple[Page, ...]:
    """Pages that every sweep under ``policy`` reads from disk, in order of use."""
    return tuple(
        page
        for page in pages
        if page.id not in policy.resident and page.role not in (Role.EMBED, Role.FINAL)
    )
