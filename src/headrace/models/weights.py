"""Typed tensors over the bytes of a page, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight
from headrace.kernels.turned import TurnedWeight
from headrace.memory.kvcache import DTYPES
from headrace.memory.pages import PageTable, Place
from headrace.specs.forms import MATRICES, PART_NAMES

Weight = Any
"""A tensor in its stored type, a QuantizedWeight over its parts, or a TurnedWeight."""

Turn = Callable[[Weight], Weight]
"""Rearranges a weight in its memory for the kernels that will multiply it; see ``Kernels.turn``."""

TURNED = (*MATRICES, "head")
"""Logical names of what kernels only multiply. The embedding table is read by rows as well, even
where it is the head; routers are multiplied by a path of their own."""


class TurnedPage(NamedTuple):
    """The bytes (uint8, 1-D) of a page in which the tensors ``names`` were turned."""

    memory: Tensor
    names: frozenset[str]


def turned(table: PageTable, page: int, memory: Tensor, turn: Turn) -> TurnedPage:
    """Turn every weight of ``page`` in ``memory`` that may be, where ``turn`` does so."""
    found = _cut(table, page, memory)
    after = {name: turn(found[name]) for name in TURNED if name in found}
    names = (name for name, weight in after.items() if isinstance(weight, TurnedWeight))
    return TurnedPage(memory, frozenset(names))


KEPT_PAGES = 4096
"""Pages whose tensors are kept, about two kilobytes each."""


class Weights:
    """Cuts the bytes of pages into their tensors. No weight is copied.

    Cutting costs three microseconds a tensor, as much as starting a task; so the tensors of a
    page are kept and used again while it is found in the same memory. For one thread.
    """

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._kept: dict[int, tuple[Tensor | TurnedPage, Mapping[str, Weight]]] = {}

    def of(self, page: int, view: Tensor | TurnedPage) -> Mapping[str, Weight]:
        """Logical name -> tensor (or integers with scales) over ``view`` (uint8, 1-D): as stored,
        but for what was turned."""
        kept = self._kept.get(page)
        if kept is not None and kept[0] is view:
            return kept[1]
        if len(self._kept) >= KEPT_PAGES:
            self._kept.clear()
        tensors = self._tensors(page, view)
        self._kept[page] = view, tensors
        return tensors

    def known(self, page: int) -> Mapping[str, Weight] | None:
        """The tensors of ``page`` where it was last; None when they are not kept."""
        kept = self._kept.get(page)
        return None if kept is None else kept[1]

    def _tensors(self, page: int, view: Tensor | TurnedPage) -> Mapping[str, Weight]:
        if not isinstance(view, TurnedPage):
            return _cut(self._table, page, view)
        found = _cut(self._table, page, view.memory)
        return found | {name: TurnedWeight(found[name]) for name in view.names}


def _cut(table: PageTable, page: int, view: Tensor) -> dict[str, Weight]:
    places = table.geometry(page)
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
