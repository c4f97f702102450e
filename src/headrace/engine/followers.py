"""Which experts stay in memory, as a run learns which ones its tokens visit.

A plan spreads the experts that stay evenly: it knows nothing of the routing. Where sweeps read only
what is routed, an expert that most sweeps visit saves more reads than one that few do; what tokens
were routed to so far says which those are. The number of pages that stay, and their memory, are the
plan's; no result changes, since experts add up in the same order wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from headrace.planner.residency import Residency
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page

HORIZON = 16
"""Sweeps over which an exchange must pay, unless the job ends before."""

MARGIN = 2.0
"""Reads that an exchange must save for the one that it costs: what was seen is a sample."""

FADING = 0.9
"""What routing counts for after another sweep."""


class Exchange(NamedTuple):
    """Page ``out`` leaves the memory that page ``into`` takes."""

    out: int
    into: int


class Followers:
    """The routed experts' pages that stay and those that stream. ``resident`` are the plan's,
    ``page_bytes`` the memory that each page takes: only equals change places."""

    def __init__(
        self,
        model: ModelSpec,
        pages: Sequence[Page],
        resident: frozenset[int],
        page_bytes: Mapping[int, int],
    ) -> None:
        self._page_bytes = page_bytes
        self._top_k = model.top_k
        self.resident = resident
        self._pages: dict[int, list[Page]] = {}
        for page in Residency(model, tuple(pages), page_bytes).experts:
            assert page.layer is not None
            self._pages.setdefault(page.layer, []).append(page)
        self._seen: dict[int, np.ndarray] = {}
        self._sweeps = self._look_at = 0

    def saw(self, routed: Mapping[int, Sequence[float]]) -> None:
        """Count the rows per expert and layer of a sweep that has ended."""
        if not routed:
            return
        self._sweeps += 1
        for layer, counts in routed.items():
            before = self._seen.get(layer)
            here = np.asarray(counts, dtype=np.float64)
            self._seen[layer] = here if before is None else FADING * before + here

    def due(self) -> bool:
        """Whether it is time to look: after sweep 1, 2, 4, 8, and every HORIZON after."""
        return self._sweeps > self._look_at

    def exchanges(self, rows: int, sweeps_left: int) -> list[Exchange]:
        """What pays within the next sweeps of ``rows`` rows each, the best first; puts off the
        next look."""
        self._look_at = self._sweeps + max(0, min(HORIZON, self._sweeps) - 1)
        worth = MARGIN / max(1, min(HORIZON, sweeps_left))
        found: list[tuple[float, Exchange]] = []
        for layer, pages in self._pages.items():
            if layer in self._seen:
                found += self._of_layer(pages, self._chances(layer, rows), worth)
        return [exchange for _, exchange in sorted(found, reverse=True)]

    def exchanged(self, exchange: Exchange) -> None:
        """Remember one that was made."""
        self.resident = (self.resident - {exchange.out}) | {exchange.into}

    def _chances(self, layer: int, rows: int) -> np.ndarray:
        """Chance of each expert to be visited by ``rows`` rows. Shape [experts]."""
        seen = self._seen[layer]
        share = np.minimum(1.0, self._top_k * seen / max(1e-9, float(seen.sum())))
        return np.asarray(1.0 - (1.0 - share) ** rows)

    def _of_layer(
        self, pages: Iterable[Page], chances: np.ndarray, worth: float
    ) -> list[tuple[float, Exchange]]:
        """The likeliest page that streams for the least likely one that stays, and so on."""
        staying: dict[int, list[tuple[float, int]]] = {}
        streaming: dict[int, list[tuple[float, int]]] = {}
        for page in pages:
            assert page.expert is not None
            table = staying if page.id in self.resident else streaming
            table.setdefault(self._page_bytes[page.id], []).append(
                (float(chances[page.expert]), page.id)
            )
        found = []
        for size, held in staying.items():
            others = sorted(streaming.get(size, ()), reverse=True)
            for (least, out), (most, into) in zip(sorted(held), others, strict=False):
                if most - least <= worth:
                    break
                found.append((most - least, Exchange(out, into)))
        return found
