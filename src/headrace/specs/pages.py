"""Pages: the units in which weights move, listed in the order a sweep uses them.

An expert (routed, shared, or the FFN of a dense layer) is one page, or, when it is larger than
``cut_bytes``, row blocks of gate/up followed by row blocks of down (never a cut along a
reduction, so results do not depend on it). The head is row blocks. A layer's small tensors and
attention weights are one page.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from headrace.specs.model import ITEM_BYTES, ModelSpec


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
    """Rows ``start:stop`` of the logical tensor ``tensor``, whose rows hold ``columns``."""

    tensor: str
    start: int
    stop: int
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slice; vectors have ``columns == 0``."""
        rows = self.stop - self.start
        return (rows, self.columns) if self.columns else (rows,)

    @property
    def elements(self) -> int:
        """Number of weights in the slice."""
        return (self.stop - self.start) * max(self.columns, 1)


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


def page_layout(model: ModelSpec, cut_bytes: int | None = None) -> tuple[Page, ...]:
    """All pages of ``model`` in order of use; every tensor row belongs to exactly one page.

    ``cut_bytes`` bounds an expert, embedding or head page (a single row may exceed it). By
    default it is the size of a layer's largest page, which sets the size of a ring slot anyway,
    within LEAST_CUT_BYTES and CUT_BYTES. Bytes assume the formats of ``model``; the page table
    knows the stored ones.
    """
    builder = _Builder(model, cut_bytes or _cut_bytes(model))
    if not model.tied_embeddings:
        builder.table(Role.EMBED, "embed")
    for layer in range(model.layers):
        builder.add(Role.LAYER, _whole(model.layer_tensors(layer)), layer)
        for expert in range(model.experts_in(layer)):
            builder.expert(layer, expert)
    builder.add(Role.FINAL, _whole({"final_norm": (model.hidden,)}))
    builder.table(Role.HEAD, "embed" if model.tied_embeddings else "head")
    return tuple(builder.pages)


def _cut_bytes(model: ModelSpec) -> int:
    layer = sum(s.elements for s in _whole(model.layer_tensors())) * ITEM_BYTES[model.weight_dtype]
    largest = max(layer, _expert_bytes(model, _whole(model.expert_tensors())))
    return min(CUT_BYTES, max(largest, LEAST_CUT_BYTES))


class _Builder:
    def __init__(self, model: ModelSpec, cut_bytes: int) -> None:
        self.model = model
        self.cut_bytes = cut_bytes
        self.item = ITEM_BYTES[model.weight_dtype]
        self.pages: list[Page] = []

    def add(
        self,
        role: Role,
        slices: tuple[Slice, ...],
        layer: int | None = None,
        expert: int | None = None,
        part: int = 0,
    ) -> None:
        size = sum(s.elements for s in slices) * self.item
        if expert is not None:
            size = _expert_bytes(self.model, slices)
        self.pages.append(Page(len(self.pages), role, slices, size, layer, expert, part))

    def table(self, role: Role, tensor: str) -> None:
        rows, columns = self.model.vocab, self.model.hidden
        for part, (a, b) in enumerate(_blocks(rows, columns * self.item, self.cut_bytes)):
            self.add(role, (Slice(tensor, a, b, columns),), part=part)

    def expert(self, layer: int, expert: int) -> None:
        shapes = self.model.expert_tensors(layer, expert)
        whole = _whole(shapes)
        if _expert_bytes(self.model, whole) <= self.cut_bytes:
            self.add(Role.EXPERT, whole, layer, expert)
            return
        ups = {n: s for n, s in shapes.items() if n.startswith(("gate", "up"))}
        downs = {n: s for n, s in shapes.items() if n.startswith("down")}
        for role, group in ((Role.EXPERT_UP, ups), (Role.EXPERT_DOWN, downs)):
            matrices = [s for s in group.values() if len(s) == 2]
            row_bytes = self.model.expert_bytes(sum(s[1] for s in matrices))
            for part, (a, b) in enumerate(_blocks(matrices[0][0], row_bytes, self.cut_bytes)):
                slices = tuple(Slice(n, a, b, s[1] if len(s) > 1 else 0) for n, s in group.items())
                self.add(role, slices, layer, expert, part)


def _whole(shapes: dict[str, tuple[int, ...]]) -> tuple[Slice, ...]:
    return tuple(Slice(n, 0, s[0], s[1] if len(s) > 1 else 0) for n, s in shapes.items())


def _expert_bytes(model: ModelSpec, slices: tuple[Slice, ...]) -> int:
    return sum(model.expert_bytes(s.elements, matrix=bool(s.columns)) for s in slices)


def _blocks(rows: int, row_bytes: int, cut_bytes: int) -> list[tuple[int, int]]:
    """Nearly equal row blocks of at most ``cut_bytes`` each."""
    count = -(-rows // max(1, cut_bytes // row_bytes))
    edges = [rows * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))
