"""What searches for one job find out once, on any number of machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from headrace.planner.decided import Decisions
from headrace.planner.prices import Sketches
from headrace.planner.residency import Residency
from headrace.schedule.tally import Kinds
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page

if TYPE_CHECKING:
    from headrace.planner.published import Published


@dataclass(frozen=True)
class Known:
    """Sketches that were drawn, what the batcher decided, pages that were sorted, what others
    published."""

    sketches: Sketches = field(default_factory=Sketches)
    decisions: Decisions = field(default_factory=Decisions)
    _kinds: list[Kinds] = field(default_factory=list)
    _residencies: list[_Residency] = field(default_factory=list)

    @cached_property
    def published(self) -> Published:
        """Published figures, and the policies behind them."""
        from headrace.planner.published import read_published

        return read_published()

    def kinds_of(self, model: ModelSpec, pages: tuple[Page, ...]) -> Kinds:
        """Kinds of ``pages``, the same ones for the same pages."""
        for kinds in self._kinds:
            if kinds.pages is pages and kinds.model == model:
                return kinds
        self._kinds.append(Kinds(model, pages))
        return self._kinds[-1]

    def residency_of(
        self, model: ModelSpec, pages: tuple[Page, ...], page_bytes: Mapping[int, int] | None
    ) -> Residency:
        """Residency choices of ``pages``, the same ones for the same pages and bytes."""
        for known in self._residencies:
            same = known.found.pages is pages and known.page_bytes is page_bytes
            if same and known.model == model:
                return known.found
        found = Residency(model, pages, page_bytes)
        self._residencies.append(_Residency(model, page_bytes, found))
        return found


class _Residency(NamedTuple):
    model: ModelSpec
    page_bytes: Mapping[int, int] | None
    found: Residency
