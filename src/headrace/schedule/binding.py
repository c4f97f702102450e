"""The amounts of one sweep: what was a name in the schedule becomes a number here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.specs.model import ModelSpec


class Extent(NamedTuple):
    """One sequence's share of a micro-batch: ``rows`` new tokens, ``kv_len`` after them."""

    rows: int
    kv_len: int


class Attention(NamedTuple):
    """What one micro-batch's attention looks at: (row, token seen) ``pairs``, and the ``tokens``
    whose keys and values are read, once per sequence; ``decodes`` sequences have a single row."""

    pairs: int
    tokens: int
    decodes: int = 0


@dataclass
class Binding:
    """Known part: per micro-batch the extents and the rows to sample. Routed part: rows per
    expert and layer, expected values before the run, filled by ROUTER during it.

    ``page_bytes`` holds what READ_PAGE really moved (page id -> bytes); it is empty before the
    run, when the page's own size is taken (``on_demand``: times the chance that it is routed).
    ``row_bytes`` is what READ_ROWS moved, None before the run.
    """

    extents: tuple[tuple[Extent, ...], ...] = ()
    samples: tuple[int, ...] = ()
    routed: dict[int, tuple[float, ...]] = field(default_factory=dict)
    page_bytes: dict[int, int] = field(default_factory=dict)
    row_bytes: int | None = None
    _sums: _Sums | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows of the sweep."""
        return self._counted().rows

    @property
    def bytes_read(self) -> int:
        """Bytes that the sweep has moved from disk so far."""
        return sum(self.page_bytes.values()) + (self.row_bytes or 0)

    def mb_rows(self, mb: int) -> int:
        """Rows of micro-batch ``mb`` (0 when the sweep has fewer micro-batches)."""
        return self._counted().mb_rows[mb] if mb < len(self.extents) else 0

    def expert_rows(self, model: ModelSpec, layer: int, expert: int) -> float:
        """Rows that visit an expert: all, the count if known, or the mean of uniform routing."""
        if model.visited_by_all(layer, expert):
            return self.rows
        if layer in self.routed:
            return self.routed[layer][expert]
        return self.rows * model.top_k / model.experts

    def attention(self, mb: int, window: int | None = None, causal: bool = True) -> Attention:
        """Attention of micro-batch ``mb``, each row over at most ``window`` tokens: those before
        it, or, unless ``causal``, all of its sequence."""
        known = self._counted().attention
        if (mb, window, causal) not in known:
            parts = [seen for _, seen in self.attention_parts(mb, window, causal)]
            known[mb, window, causal] = Attention(
                pairs=sum(seen.pairs for seen in parts),
                tokens=sum(seen.tokens for seen in parts),
                decodes=sum(seen.decodes for seen in parts),
            )
        return known[mb, window, causal]

    def attention_parts(
        self, mb: int, window: int | None = None, causal: bool = True
    ) -> tuple[tuple[int, Attention], ...]:
        """The same apart, with the rows of each: sequences that decode, and those that bring
        several rows; nothing for a kind that there is not."""
        known = self._counted().parts
        if (mb, window, causal) not in known:
            extents = self.extents[mb] if mb < len(self.extents) else ()
            kinds = [e for e in extents if e.rows == 1], [e for e in extents if e.rows > 1]
            known[mb, window, causal] = tuple(
                (
                    sum(extent.rows for extent in kind),
                    Attention(
                        pairs=sum(_pairs(extent, window, causal) for extent in kind),
                        tokens=sum(_tokens(extent, window) for extent in kind),
                        decodes=sum(extent.rows == 1 for extent in kind),
                    ),
                )
                for kind in kinds
                if kind
            )
        return known[mb, window, causal]

    def cached_tokens(self, mb: int, window: int | None = None) -> int:
        """Tokens of micro-batch ``mb`` that the cache held before this sweep and a row sees."""
        extents = self.extents[mb] if mb < len(self.extents) else ()
        return sum(_tokens(extent, window) - extent.rows for extent in extents)

    def _counted(self) -> _Sums:
        """Sums over ``extents``, made once: every task of a sweep asks for them."""
        if self._sums is None or self._sums.extents is not self.extents:
            self._sums = _Sums(self.extents)
        return self._sums


class _Sums:
    def __init__(self, extents: tuple[tuple[Extent, ...], ...]) -> None:
        self.extents = extents
        self.mb_rows = [sum(extent.rows for extent in mb) for mb in extents]
        self.rows = sum(self.mb_rows)
        self.attention: dict[tuple[int, int | None, bool], Attention] = {}
        self.parts: dict[tuple[int, int | None, bool], tuple[tuple[int, Attention], ...]] = {}


def _pairs(extent: Extent, window: int | None, causal: bool) -> int:
    if not causal:
        return extent.rows * min(extent.kv_len, window or extent.kv_len)
    first = extent.kv_len - extent.rows + 1  # tokens that the first row sees
    if window is None or extent.kv_len <= window:
        return (first + extent.kv_len) * extent.rows // 2
    short = max(0, window - first)  # rows that see fewer tokens than the window
    return (2 * first + short - 1) * short // 2 + (extent.rows - short) * window


def _tokens(extent: Extent, window: int | None) -> int:
    return extent.kv_len if window is None else min(extent.kv_len, window + extent.rows - 1)
