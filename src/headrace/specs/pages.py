"""Pages: the units in which weights move, listed in the order a sweep uses them.

An expert is one page, or, when it is larger than ``cut_bytes``, row blocks of gate/up
followed by row blocks of down (never a cut along a reduction, so results do not depend on
it). The head is row blocks. A layer's small tensors and attention weights are one page.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from typing import NamedTuple

from headrace.specs.forms import Form, Forms
from headrace.specs.model import ModelSpec


class Role(StrEnum):
    """What a page is for."""

    EMBED = "embed"  # row block of an untied embedding table
    LAYER = "layer"  # norms, attention and router weights of one layer
    EXPERT = "expert"  # a whole expert (or dense FFN)
    EXPERT_UP = "expert_up"  # row block of gate and up
    EXPERT_DOWN = "expert_down"  # row block of down
    FINAL = "final"  # final norm
    HEAD = "head"  # row block of the head (of the embedding table, when tied)


class Slice(NamedTuple):
    """Rows ``start:stop`` of the logical tensor ``tensor``, whose rows hold ``columns``, and the
    form in which they are stored."""

    tensor: str
    start: int
    stop: int
    columns: int
    form: Form

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slice; vectors have ``columns == 0``."""
        rows = self.stop - self.start
        return (rows, self.columns) if self.columns else (rows,)

    @property
    def elements(self) -> int:
        """Number of weights in the slice."""
        return (self.stop - self.start) * max(self.columns, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the slice as stored, scales and zero points included."""
        return self.form.nbytes(self.start, self.stop, self.columns)


@dataclass(frozen=True)
class Page:
    """One unit of weight traffic. ``id`` is its index in the layout; ``bytes`` what it stores."""

    id: int
    role: Role
    slices: tuple[Slice, ...]
    bytes: int
    layer: int | None = None
    expert: int | None = None
    part: int = 0

    @cached_property
    def matrix_elements(self) -> int:
        """Weights that rows are multiplied with."""
        return sum(s.elements for s in self.slices if s.columns)

    @cached_property
    def matrix_bytes(self) -> int:
        """Their bytes as stored."""
        return sum(s.nbytes for s in self.slices if s.columns)

    @property
    def label(self) -> str:
        """Short name for traces and messages, as ``L3.E5`` or ``head.2``."""
        if self.layer is None:
            return f"{self.role}.{self.part}"
        expert = "" if self.expert is None else f".E{self.expert}"
        cut = f".{self.role[7:]}{self.part}" if self.role.startswith("expert_") else ""
        return f"L{self.layer}{expert}{cut}"


CUT_BYTES = 64_000_000
"""Largest expert that moves as one page: tasks stay short, and a ring of a few slots small."""

LEAST_CUT_BYTES = 8_000_000
"""Pages are not cut smaller than this: a disk is slower at small reads."""


def page_layout(
    model: ModelSpec, cut_bytes: int | None = None, forms: Forms | None = None
) -> tuple[Page, ...]:
    """All pages of ``model`` in order of use; every tensor row belongs to exactly one page.

    ``cut_bytes`` bounds an expert, embedding or head page (a single row, or the few that share
    packed zero points, may exceed it). By default it is the size of a layer's largest page, which
    sets the size of a ring slot anyway, within LEAST_CUT_BYTES and CUT_BYTES. ``forms`` says how
    each tensor is stored; None: as the model says.
    """
    builder = _Builder(model, cut_bytes, forms)
    if not model.tied_embeddings:
        builder.table(Role.EMBED, "embed")
    for layer in range(model.layers):
        builder.layer(layer)
        for expert in range(model.experts_in(layer)):
            builder.expert(layer, expert)
    builder.add(Role.FINAL, builder.whole({"final_norm": (model.hidden,)}))
    builder.table(Role.HEAD, "embed" if model.tied_embeddings else "head")
    return tuple(builder.pages)


class _Part(NamedTuple):
    """One page of an expert, before it has its place."""

    role: Role
    part: int
    slices: tuple[Slice, ...]
    bytes: int


class _Builder:
    def __init__(self, model: ModelSpec, cut_bytes: int | None, forms: Forms | None) -> None:
        self.model = model
        self.forms = forms or _uniform(model)
        self.pages: list[Page] = []
        self.cut_bytes = cut_bytes or self._cut_bytes()
        self._alike: dict[object, list[_Part]] | None = {} if forms is None else None

    def add(
        self,
        role: Role,
        slices: tuple[Slice, ...],
        layer: int | None = None,
        expert: int | None = None,
        part: int = 0,
    ) -> None:
        self.pages.append(Page(len(self.pages), role, slices, _nbytes(slices), layer, expert, part))

    def table(self, role: Role, tensor: str) -> None:
        whole = self.whole({tensor: (self.model.vocab, self.model.hidden)})
        for part, slices in enumerate(self._blocks(whole)):
            self.add(role, slices, part=part)

    def layer(self, layer: int) -> None:
        self.add(Role.LAYER, self.whole(self.model.layer_tensors(layer), layer), layer)

    def expert(self, layer: int, expert: int) -> None:
        for role, part, slices, count in self._parts_of(layer, expert):
            self.pages.append(Page(len(self.pages), role, slices, count, layer, expert, part))

    def _parts_of(self, layer: int, expert: int) -> list[_Part]:
        """An expert's pages; of thousands that are stored alike, made once."""
        if self._alike is None:
            return self._cut(layer, expert)
        key = self.model.is_routed(layer), self.model.visited_by_all(layer, expert)
        if key not in self._alike:
            self._alike[key] = self._cut(layer, expert)
        return self._alike[key]

    def _cut(self, layer: int, expert: int) -> list[_Part]:
        whole = self.whole(self.model.expert_tensors(layer, expert), layer, expert)
        if _nbytes(whole) <= self.cut_bytes:
            return [_Part(Role.EXPERT, 0, whole, _nbytes(whole))]
        downs = tuple(s for s in whole if s.tensor.startswith("down"))
        ups = tuple(s for s in whole if s not in downs)
        return [
            _Part(role, part, slices, _nbytes(slices))
            for role, group in ((Role.EXPERT_UP, ups), (Role.EXPERT_DOWN, downs))
            for part, slices in enumerate(self._blocks(group))
        ]

    def whole(
        self,
        shapes: dict[str, tuple[int, ...]],
        layer: int | None = None,
        expert: int | None = None,
    ) -> tuple[Slice, ...]:
        return tuple(
            Slice(name, 0, s[0], s[1] if len(s) > 1 else 0, self.forms(name, layer, expert))
            for name, s in shapes.items()
        )

    def _blocks(self, whole: tuple[Slice, ...]) -> Iterator[tuple[Slice, ...]]:
        """The same rows of every tensor of ``whole``, in nearly equal blocks of at most
        ``cut_bytes`` of matrices each."""
        rows = whole[0].stop
        step = max(s.form.row_multiple for s in whole)
        units = -(-rows // step)
        unit_bytes = sum(s.form.nbytes(0, step, s.columns) for s in whole if s.columns)
        count = -(-units // max(1, self.cut_bytes // unit_bytes))
        edges = [min(rows, units * i // count * step) for i in range(count + 1)]
        for start, stop in itertools.pairwise(edges):
            yield tuple(s._replace(start=start, stop=stop) for s in whole)

    def _cut_bytes(self) -> int:
        last = self.model.layers - 1
        layer = self.whole(self.model.layer_tensors(), last)
        expert = self.whole(self.model.expert_tensors(), last, 0)
        largest = max(_nbytes(layer), _nbytes(expert))
        return min(CUT_BYTES, max(largest, LEAST_CUT_BYTES))


def _uniform(model: ModelSpec) -> Forms:
    form = cache(model.form_of)
    return lambda name, layer, expert: form(name)


def _nbytes(slices: tuple[Slice, ...]) -> int:
    return sum(s.nbytes for s in slices)
