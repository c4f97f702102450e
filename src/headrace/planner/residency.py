"""Which pages stay in memory, given how much there is for weights.

The final norm always stays. Pages that every row needs (attention, head, shared experts) go
first, then routed experts, spread evenly over the sweep so that reads and arithmetic alternate;
the embedding table last, since rows of it are read by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from headrace.planner.memory_map import arena_bytes
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.scratch import READ_SLACK

T = TypeVar("T")


class Residency:
    """Choices of resident pages for one model. ``page_bytes`` as in ``schedule.sizes``."""

    def __init__(
        self,
        model: ModelSpec,
        pages: tuple[Page, ...],
        page_bytes: Mapping[int, int] | None = None,
    ) -> None:
        self.pages = pages
        known = page_bytes or {}
        self.bytes_of = {p.id: arena_bytes(known.get(p.id, p.bytes + READ_SLACK)) for p in pages}
        routed = [model.is_routed(layer) for layer in range(model.layers)]
        experts, shared = [], []
        for page in pages:
            if page.expert is None:
                if page.role in (Role.LAYER, Role.HEAD):
                    shared.append(page)
            elif model.is_moe and not (routed[page.layer or 0] and page.expert < model.experts):
                shared.append(page)
            else:
                experts.append(page)
        self.final = tuple(p for p in pages if p.role is Role.FINAL)
        self.rows = tuple(p for p in pages if p.role is Role.EMBED)
        self.shared, self.experts = tuple(shared), tuple(experts)
        self.streamable = self.shared + self.experts
        by_size: dict[int, list[int]] = {}
        for page in self.streamable:
            by_size.setdefault(self.bytes_of[page.id], []).append(page.id)
        self._by_size = {size: frozenset(by_size[size]) for size in sorted(by_size, reverse=True)}
        self._everything = frozenset(self.bytes_of)
        self._final = frozenset(p.id for p in self.final)
        self._shared_ids = [p.id for p in self.shared]
        self._expert_ids = [p.id for p in self.experts]
        self._expert_set = frozenset(self._expert_ids)
        self._smallest: dict[int, frozenset[int]] = {}  # by slots of the ring

    def everything(self) -> frozenset[int]:
        """All pages."""
        return self._everything

    def bytes_held(self, resident: frozenset[int]) -> int:
        """Bytes of resident pages, the final norm among them."""
        return sum(map(self.bytes_of.__getitem__, resident | self._final))

    def slot_bytes(self, resident: frozenset[int]) -> int:
        """Bytes of a ring slot: the largest page that streams; 0 when none does."""
        return next((size for size, ids in self._by_size.items() if not ids <= resident), 0)

    def weight_bytes(self, resident: frozenset[int], ring_slots: int) -> int:
        """Bytes of resident pages and ring."""
        held = sum(map(self.bytes_of.__getitem__, resident))
        return held + ring_slots * self.slot_bytes(resident)

    def smallest(self, ring_slots: int) -> frozenset[int]:
        """The residency that takes the fewest bytes: as pages above some size stay, slots of
        the ring shrink, which may save more than it costs."""
        if ring_slots not in self._smallest:
            options = accumulate(self._by_size.values(), frozenset.union, initial=self._final)
            self._smallest[ring_slots] = min(
                options, key=lambda r: (self.weight_bytes(r, ring_slots), len(r))
            )
        return self._smallest[ring_slots]

    def fill(self, room: int, ring_slots: int) -> frozenset[int] | None:
        """As much as fits ``room`` bytes beside a ring of ``ring_slots``; None if nothing does."""
        base = self.smallest(ring_slots)
        if self.weight_bytes(base, ring_slots) > room:
            return None
        shared = self._most(base, self._shared_ids, room, ring_slots)
        if not shared.issuperset(self._shared_ids):
            return shared
        spread = self._spread_experts(shared, room, ring_slots)
        if not spread >= self._expert_set:
            return spread
        rows = spread | {p.id for p in self.rows}
        return rows if self.weight_bytes(rows, ring_slots) <= room else spread

    def _most(
        self, base: frozenset[int], order: list[int], room: int, ring_slots: int
    ) -> frozenset[int]:
        """``base`` and the longest beginning of ``order`` that fits (bytes need not grow)."""
        left = {size: len(ids - base) for size, ids in self._by_size.items()}
        bytes_held, fits = self.weight_bytes(base, 0), 0
        for place, page in enumerate(order, start=1):
            if page not in base:
                bytes_held += self.bytes_of[page]
                left[self.bytes_of[page]] -= 1
            slot = next((size for size, count in left.items() if count), 0)
            if bytes_held + ring_slots * slot <= room:
                fits = place
        return base | frozenset(order[:fits])

    def _spread_experts(self, base: frozenset[int], room: int, ring_slots: int) -> frozenset[int]:
        ids = self._expert_ids
        if not base.isdisjoint(ids):
            ids = [i for i in ids if i not in base]
        if not ids:
            return base
        sizes = list(map(self.bytes_of.__getitem__, ids))
        left = room - self.weight_bytes(base, 0)
        if sum(sizes) <= left:
            return base.union(ids)
        left -= ring_slots * min(sizes)
        mean = sum(sizes) / len(sizes)
        count = min(len(ids) - 1, int(left / mean) + len(self._by_size))
        while count > 0:
            chosen = base.union(evenly(ids, count))
            over = self.weight_bytes(chosen, ring_slots) - room
            if over <= 0:
                return chosen
            count -= -(-over // max(sizes))  # fewer would not be enough
        return base


def evenly(items: Sequence[T], count: int) -> Iterable[T]:
    """``count`` of ``items``, spread evenly over the list."""
    total = len(items)
    return [items[-(-j * total // count) - 1] for j in range(1, count + 1)]
