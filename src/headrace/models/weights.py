"""Typed tensors over the bytes of a page, wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight
from headrace.memory.kvcache import DTYPES
from headrace.memory.pages import PageTable, Place
from headrace.specs.forms import PART_NAMES

Weight = Any
"""A tensor in its stored type, or a QuantizedWeight over its parts."""

KEPT_PAGES = 4096
"""Pages whose tensors are kept, about two kilobytes each."""


class Weights:
    """Cuts the bytes of pages into their tensors. No weight is copied.

    Cutting costs three microseconds a tensor, as much as starting a task; so the tensors of a
    page are kept and used again while it is found in the same memory. For one thread.
    """

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._kept: dict[int, tuple[Tensor, Mapping[str, Weight]]] = {}

    def of(self, page: int, view: Tensor) -> Mapping[str, Weight]:
        """Logical name -> tensor (or integers with scales) as stored over ``view`` (uint8, 1-D)."""
        kept = self._kept.get(page)
        if kept is not None and kept[0] is view:
            return kept[1]
        if len(self._kept) >= KEPT_PAGES:
            self._kept.clear()
        tensors = self._cut(page, view)
        self._kept[page] = view, tensors
        return tensors

    def known(self, page: int) -> Mapping[str, Weight] | None:
        """The tensors of ``page`` where it was last; None when they are not kept."""
        kept = self._kept.get(page)
        return None if kept is None else kept[1]

    def _cut(self, page: int, view: Tensor) -> Mapping[str, Weight]:
        places = self._table.geometry(page)
        found: dict[str, Weight] = {n: _tensor(view, place) for n, place in places.items()}
        for name, place in places.items():
            if place.form is not None:
                found[name] = QuantizedWeight(
                    values=found[name],
                    scale=found.pop(name + PART_NAMES["_scale"]),
                    columns=place.columns,
                    bits=place.form.bits,
                    zero_point=found.pop(name + PART_NAMES["_zero_point"], None),
                )
        return found


def _tensor(view: Tensor, place: Place) -> Tensor:
    part = view[place.offset : place.offset + place.nbytes]
    return part.view(DTYPES[place.dtype]).view(place.shape)
