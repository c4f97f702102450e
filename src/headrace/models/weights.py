"""Typed tensors over the bytes of a page, wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from headrace.memory.kvcache import DTYPES
from headrace.memory.pages import PageTable

KEPT_PAGES = 4096
"""Pages whose tensors are kept, about two kilobytes each."""


class Weights:
    """Cuts the bytes of pages into their tensors. No weight is copied.

    Cutting costs three microseconds a tensor, as much as starting a task; so the tensors of a
    page are kept and used again while it is found in the same memory. For one thread.
    """

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._kept: dict[int, tuple[Tensor, Mapping[str, Tensor]]] = {}

    def of(self, page: int, view: Tensor) -> Mapping[str, Tensor]:
        """Logical name -> tensor in its stored type over ``view`` (uint8, 1-D)."""
        kept = self._kept.get(page)
        if kept is not None and kept[0] is view:
            return kept[1]
        if len(self._kept) >= KEPT_PAGES:
            self._kept.clear()
        tensors = self._cut(page, view)
        self._kept[page] = view, tensors
        return tensors

    def _cut(self, page: int, view: Tensor) -> Mapping[str, Tensor]:
        return {
            name: view[place.offset : place.offset + place.nbytes]
            .view(DTYPES[place.dtype])
            .view(place.shape)
            for name, place in self._table.geometry(page).items()
        }
