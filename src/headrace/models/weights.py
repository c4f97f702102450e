"""Typed tensors over the bytes of a page, wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from headrace.memory.kvcache import DTYPES
from headrace.memory.pages import PageTable


class Weights:
    """Cuts the bytes of pages into their tensors. Nothing is copied."""

    def __init__(self, table: PageTable) -> None:
        self._table = table

    def of(self, page: int, view: Tensor) -> Mapping[str, Tensor]:
        """Logical name -> tensor in its stored type over ``view`` (uint8, 1-D)."""
        return {
            name: view[place.offset : place.offset + place.nbytes]
            .view(DTYPES[place.dtype])
            .view(place.shape)
            for name, place in self._table.geometry(page).items()
        }
