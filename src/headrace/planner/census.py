"""A model's pages and layers counted by what they cost and how they come under one policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from headrace.schedule.tally import Kinds
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy


class Weights(StrEnum):
    """Which weights a page of a sketch stands for."""

    LAYER = "layer"
    EXPERTS = "experts"
    ON_DISK = "experts on disk"
    HELD = "held experts"
    BESIDE = "experts of the processor"
    HEAD = "head"
    TABLE = "table"
    FINAL = "final"


Alike = tuple[tuple[Page, int], ...]
"""Pages that cost the same: one of them, and how many there are."""


class Way(StrEnum):
    """How a page comes to the device in each sweep; one that stays, or is not sent, does not."""

    STAYS = "stays"
    PINNED = "pinned"
    PAGEABLE = "pageable"
    DISK = "disk"


@dataclass(frozen=True)
class AlikeLayers:
    """Layers that cost the same: the first, how many, its page, its experts by processor."""

    layer: int
    layers: int
    page: Page
    routed: bool
    own: Alike
    beside: Alike


@dataclass(frozen=True)
class Census:
    """``classes``: alike pages by what they are, how they come, and the turn of their layer."""

    model: ModelSpec
    layers: tuple[AlikeLayers, ...]
    classes: Mapping[tuple[Weights, Way, int | None], Alike]

    @property
    def period(self) -> int:
        """Layers after which they repeat."""
        return period_of(self.model)

    def count(self, weights: Weights, turn: int | None = None) -> int:
        """Pages of ``weights``; of one ``turn`` only, if it is given."""
        found = ((key, pages) for key, pages in self.classes.items() if key[0] is weights)
        return sum(_total(pages) for key, pages in found if turn in (None, key[2]))

    def streamed(self, weights: Weights) -> int:
        """Those that come in every sweep."""
        return self.count(weights) - self._count(weights, Way.STAYS)

    def any_on_disk(self, weights: Weights) -> bool:
        """Whether some come from disk."""
        return self._count(weights, Way.DISK) > 0

    def all_resident(self, weights: Weights) -> bool:
        """Whether all stay."""
        return self.count(weights) == self._count(weights, Way.STAYS)

    def examples(self) -> tuple[Page, ...]:
        """Each kind of page once."""
        found = {group.page.id: group.page for group in self.layers}
        lists = [pages for group in self.layers for pages in (group.own, group.beside)]
        for pages in (*lists, *self.classes.values()):
            found |= {page.id: page for page, _ in pages}
        return tuple(found.values())

    def _count(self, weights: Weights, way: Way) -> int:
        return sum(_total(p) for (w, y, _), p in self.classes.items() if (w, y) == (weights, way))


def turn_of(layer: int, period: int) -> int:
    """0 of the first layer, which may be another and is the one that crosses the seam; of the
    others, which of ``period`` it is like, from 1."""
    return 1 + layer % period if layer else 0


def period_of(model: ModelSpec) -> int:
    """Every how many layers attention is alike."""
    return model.window_every if model.sliding_window else 1


def take_census(kinds: Kinds, policy: Policy) -> Census:
    """Pages of ``kinds`` counted; those of a layer that are alike are counted as sets."""
    model, period = kinds.model, period_of(kinds.model)
    classes: dict[tuple[Weights, Way, int | None], _Groups] = {}
    for page in kinds.others:
        weights = _PLAIN[page.role]
        turn = None if page.layer is None else turn_of(page.layer, period)
        of_class = classes.setdefault((weights, _way_of(page, policy, weights), turn), {})
        _count(of_class, (page.role, page.bytes), page, 1)
    own: list[_Groups] = [{} for _ in range(model.layers)]
    beside: list[_Groups] = [{} for _ in range(model.layers)]
    for layer, of_layer in kinds.experts_of.items():
        for kind, ids in zip(kinds.all, of_layer, strict=True):
            key = (kind.page.role, kind.page.bytes, kind.by_all)
            for weights, some in _divided(ids, policy):
                page = kinds.pages_by_id[min(some)]
                way = _way_of(page, policy, weights)
                of_class = classes.setdefault((weights, way, turn_of(layer, period)), {})
                _count(of_class, key, page, len(some))
                of_processor = beside if weights is Weights.BESIDE else own
                _count(of_processor[layer], key, page, len(some))
    layers = _alike_layers(kinds, own, beside)
    return Census(model, layers, {key: _alike(groups) for key, groups in classes.items()})


def _divided(ids: frozenset[int], policy: Policy) -> Iterator[tuple[Weights, frozenset[int]]]:
    """Expert pages ``ids`` by what they are under ``policy``."""
    held = ids & policy.resident
    rest = ids - held
    beside = rest & policy.cpu_experts
    rest -= beside
    read = rest & policy.on_disk
    found = (
        (Weights.HELD, held),
        (Weights.BESIDE, beside),
        (Weights.ON_DISK, read),
        (Weights.EXPERTS, rest - read),
    )
    return ((weights, some) for weights, some in found if some)


@dataclass
class _Counted:
    page: Page
    count: int


_Groups = dict[object, _Counted]


def _count(groups: _Groups, key: object, page: Page, count: int) -> None:
    if key in groups:
        groups[key].count += count
    else:
        groups[key] = _Counted(page, count)


def _total(pages: Alike) -> int:
    return sum(count for _, count in pages)


def _alike(groups: _Groups) -> Alike:
    return tuple((found.page, found.count) for found in groups.values())


def _alike_layers(
    kinds: Kinds, own: list[_Groups], beside: list[_Groups]
) -> tuple[AlikeLayers, ...]:
    model, period = kinds.model, period_of(kinds.model)
    pages = {page.layer or 0: page for page in kinds.others if page.role is Role.LAYER}
    groups: dict[object, list[int]] = {}
    for layer, page in pages.items():
        key = (
            turn_of(layer, period),
            model.is_routed(layer),
            model.window_of(layer),
            page.bytes,
            *(tuple((k, c.count) for k, c in found[layer].items()) for found in (own, beside)),
        )
        groups.setdefault(key, []).append(layer)
    return tuple(
        AlikeLayers(
            layer := alike[0],
            len(alike),
            pages[layer],
            model.is_routed(layer),
            _alike(own[layer]),
            _alike(beside[layer]),
        )
        for alike in groups.values()
    )


_PLAIN = {
    Role.LAYER: Weights.LAYER,
    Role.FINAL: Weights.FINAL,
    Role.HEAD: Weights.HEAD,
    Role.EMBED: Weights.TABLE,
}


def _way_of(page: Page, policy: Policy, weights: Weights) -> Way:
    """Of the table rows are sent, not pages; on disk is where they are looked up."""
    if page.id in policy.resident or weights in (Weights.FINAL, Weights.BESIDE):
        return Way.STAYS
    if page.id in policy.on_disk:
        return Way.DISK
    return Way.PAGEABLE if policy.pageable else Way.PINNED
