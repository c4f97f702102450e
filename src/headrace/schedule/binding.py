"""The amounts of one sweep: what was a name in the schedule becomes a number here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.specs.model import ModelSpec


class Extent(NamedTuple):
    """One sequence's share of a micro-batch: ``rows`` new tokens, ``kv_len`` after them."""

    rows: int
    kv_len: int


@dataclass
class Binding:
    """Known part: per micro-batch the extents and the rows to sample. Routed part: rows per
    expert and layer, expected values before the run, filled by ROUTER during it.

    ``page_bytes`` holds what READ_PAGE really moved (page id -> bytes); it is empty before the
    run, when the page's own size is taken (``on_demand``: times the chance that it is routed).
    """

    extents: tuple[tuple[Extent, ...], ...] = ()
    samples: tuple[int, ...] = ()
    routed: dict[int, tuple[float, ...]] = field(default_factory=dict)
    page_bytes: dict[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the sweep."""
        return sum(e.rows for mb in self.extents for e in mb)

    def mb_rows(self, mb: int) -> int:
        """Rows of micro-batch ``mb`` (0 when the sweep has fewer micro-batches)."""
        return sum(e.rows for e in self.extents[mb]) if mb < len(self.extents) else 0

    def expert_rows(self, model: ModelSpec, layer: int, expert: int) -> float:
        """Rows routed to an expert: the count if known, else the mean of uniform routing."""
        if layer in self.routed:
            return self.routed[layer][expert]
        return self.rows * model.top_k / model.experts
