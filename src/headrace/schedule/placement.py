"""Where each page's bytes are during one sweep: in memory for good, or passing through the ring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from headrace.errors import UsageError
from headrace.schedule.lanes import CPU, GPU
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

    With compute on a device, the ring is the device's, and a page's home is memory of the host
    (pinned, or pageable and then staged in pinned slots) or the disk.
    """

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    phase: int = 0

    def __post_init__(self) -> None:
        needed = {"ring_slots": self.streamed, "disk_lanes": self.streamed}
        if self.policy.on_device:
            staged = tuple(page for page in self.streamed if self.is_staged(page))
            read = tuple(page for page in self.streamed if page.id in self.policy.on_disk)
            needed = {"ring_slots": self.streamed, "stage_slots": staged, "disk_lanes": read}
        self._check_cpu_experts()
        for name, pages in needed.items():
            if pages and getattr(self.policy, name) < 1:
                raise UsageError(
                    f"{len(pages)} pages must stream",
                    expected=f"policy {name} of at least 1",
                    got=getattr(self.policy, name),
                )

    @cached_property
    def streamed(self) -> tuple[Page, ...]:
        """Pages that cross the ring in this sweep, in order of use."""
        return streamed_pages(self.pages, self.policy)

    def _check_cpu_experts(self) -> None:
        chosen = self.policy.cpu_experts
        cut = {(p.layer, p.expert) for p in self.pages if p.id in chosen}
        whole = {p.id for p in self.pages if p.expert is not None and (p.layer, p.expert) in cut}
        if whole != chosen:
            raise UsageError(
                "experts of the processor",
                expected="all pages of an expert, and of experts only",
                got=f"{len(chosen)} pages, {len(whole)} of those experts",
            )

    def cpu_experts(self, layer: int) -> tuple[Page, ...]:
        """Expert pages of ``layer`` that the processor multiplies beside the device."""
        return self._divided[layer][0]

    def own_experts(self, layer: int) -> tuple[Page, ...]:
        """Expert pages of ``layer`` on the lane that multiplies: all, if alone."""
        return self._divided[layer][1]

    @cached_property
    def _divided(self) -> tuple[tuple[tuple[Page, ...], tuple[Page, ...]], ...]:
        """Of each layer, both."""
        chosen = self.policy.cpu_experts
        return tuple(
            (
                tuple(page for page in pages if page.id in chosen),
                tuple(page for page in pages if page.id not in chosen),
            )
            for pages in self.experts
        )

    @property
    def lane(self) -> str:
        """The lane that multiplies."""
        return GPU if self.policy.on_device else CPU

    def is_staged(self, page: Page) -> bool:
        """Whether a page passes a pinned slot on its way to the device."""
        return self.policy.pageable or page.id in self.policy.on_disk

    def streamed_in(self, layer: int) -> tuple[tuple[int, Page], ...]:
        """Streamed pages of a layer with their number in the sweep; of the head, when ``layer``
        is the number of layers."""
        return self._by_layer.get(None if layer == self.model.layers else layer, ())

    @cached_property
    def _by_layer(self) -> Mapping[int | None, tuple[tuple[int, Page], ...]]:
        found: dict[int | None, list[tuple[int, Page]]] = {}
        for index, page in enumerate(self.streamed):
            found.setdefault(page.layer, []).append((index, page))
        return {layer: tuple(pages) for layer, pages in found.items()}

    @cached_property
    def table(self) -> tuple[Buffer, ...]:
        """Where the host gathers embedding rows from, beside a device: the pages' home."""
        if not self.policy.on_device:
            return ()
        on_disk = self.policy.on_disk
        return tuple(Buffer("home", page.id) for page in self.embed if page.id not in on_disk)

    @cached_property
    def home(self) -> Mapping[int, Buffer]:
        """Page id -> the buffer that holds it: its own, or the ring slot it passes through."""
        homes = {page.id: Buffer("page", page.id) for page in self.pages}
        slots = self.policy.ring_slots
        for page_id in self.policy.cpu_experts:
            homes[page_id] = Buffer("home", page_id)
        for index, page in enumerate(self.streamed):
            homes[page.id] = Buffer("slot", (self.phase + index) % slots)
        return homes

    @cached_property
    def embed(self) -> tuple[Page, ...]:
        """Row blocks of the embedding table (the head's, when tied)."""
        return self._role(Role.HEAD if self.model.tied_embeddings else Role.EMBED)

    @cached_property
    def rows_from_disk(self) -> bool:
        """Whether embedding rows are read by row, from disk or, beside a device, from memory."""
        return any(page.id not in self.policy.resident for page in self.embed)

    @cached_property
    def layers(self) -> tuple[Page, ...]:
        """The page of each layer's norms, attention and router."""
        return self._role(Role.LAYER)

    @cached_property
    def experts(self) -> tuple[tuple[Page, ...], ...]:
        """Expert pages of each layer in ascending order of expert, up before down."""
        found: list[list[Page]] = [[] for _ in range(self.model.layers)]
        for page in self.pages:
            if page.layer is not None and page.expert is not None:
                found[page.layer].append(page)
        return tuple(map(tuple, found))

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
        if page.id not in policy.resident
        and page.id not in policy.cpu_experts
        and page.role not in (Role.EMBED, Role.FINAL)
    )
