"""A census of pages from shares, before any page is chosen: what ``census`` counts afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from headrace.planner.census import Alike, AlikeLayers, Census, Way, Weights, period_of, turn_of
from headrace.schedule.tally import Kind, Kinds
from headrace.specs.pages import Page, Role

_PLAIN = {
    Role.LAYER: (Weights.LAYER, Way.STAYS),
    Role.HEAD: (Weights.HEAD, Way.STAYS),
    Role.FINAL: (Weights.FINAL, Way.STAYS),
    Role.EMBED: (Weights.TABLE, Way.PINNED),
}


class Shares(NamedTuple):
    """Shares of the divisible experts' pages: on the device for good, of the processor, and read
    from disk. The others stream."""

    resident: float = 0.0
    cpu: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Divisible:
    """The pages that a split divides: routed experts, or all of them in a dense model. All other
    weights stay on the device, but for the embedding table, which the host looks up."""

    kinds: Kinds

    @cached_property
    def experts(self) -> tuple[Kind, ...]:
        """Kinds of divisible pages."""
        found = [kind for kind in self.kinds.all if kind.page.expert is not None]
        return tuple(kind for kind in found if not kind.by_all or not self.kinds.model.is_moe)

    @cached_property
    def others(self) -> tuple[Kind, ...]:
        """Kinds of all other pages that stay."""
        return tuple(
            kind
            for kind in self.kinds.all
            if not self._divides(kind) and kind.page.role is not Role.EMBED
        )

    def _divides(self, kind: Kind) -> bool:
        return any(kind is other for other in self.experts)

    def census(self, shares: Shares) -> Census:
        """The census of a policy with ``shares``; counts need not be whole."""
        streamed = max(0.0, 1.0 - shares.resident - shares.cpu)
        disk = min(shares.disk, streamed)
        divided = (
            (Weights.HELD, Way.STAYS, shares.resident),
            (Weights.BESIDE, Way.STAYS, shares.cpu),
            (Weights.ON_DISK, Way.DISK, disk),
            (Weights.EXPERTS, Way.PINNED, streamed - disk),
        )
        classes = {key: list(pages) for key, pages in self._constant.items()}
        for turn, page, count in self._variable:
            for weights, way, share in divided:
                if share > 1e-9:
                    classes.setdefault((weights, way, turn), []).append((page, share * count))
        return Census(
            self.kinds.model,
            tuple(self._layers(shares.cpu)),
            {key: _alike(pages) for key, pages in classes.items()},
        )

    @cached_property
    def _constant(self) -> Mapping[_Class, list[tuple[Page, float]]]:
        """Pages that are not divided, by class."""
        found: dict[_Class, list[tuple[Page, float]]] = {}
        for kind in self.kinds.all:
            if not self._divides(kind):
                held = (Weights.HELD, Way.STAYS)
                key = held if kind.page.expert is not None else _PLAIN[kind.page.role]
                found.setdefault((*key, self._turn(kind)), []).append((kind.page, len(kind.ids)))
        return found

    @cached_property
    def _variable(self) -> list[tuple[int | None, Page, int]]:
        """Turn, page and number of those that are."""
        return [(self._turn(kind), kind.page, len(kind.ids)) for kind in self.experts]

    @cached_property
    def turns(self) -> tuple[int, ...]:
        """Turns of layers that stand for others: all alike are counted with the first of them."""
        found = {self._turn(kind) for kind in self.kinds.all} - {None}
        period = period_of(self.kinds.model)
        found |= {turn_of(layer, period) for layer, _, _ in self._layer_kinds}
        return tuple(sorted(turn for turn in found if turn is not None))

    def _turn(self, kind: Kind) -> int | None:
        layer = kind.page.layer
        return None if layer is None else turn_of(layer, period_of(self.kinds.model))

    def _layers(self, cpu: float) -> Iterator[AlikeLayers]:
        """Layers by kind, each with its experts by processor."""
        for layer, count, page in self._layer_kinds:
            fixed, divisible = self._experts_of[layer]
            beside = [(p, cpu * n) for p, n in divisible] if cpu > 1e-9 else []
            own = [(p, (1.0 - cpu) * n) for p, n in divisible] if cpu < 1.0 else []
            routed = self.kinds.model.is_routed(layer)
            yield AlikeLayers(layer, count, page, routed, _alike([*fixed, *own]), _alike(beside))

    @cached_property
    def _experts_of(self) -> Mapping[int, tuple[list[tuple[Page, float]], ...]]:
        """First layer of each kind -> its expert pages, (one, how many), by whether they divide."""
        found: dict[int, tuple[list[tuple[Page, float]], ...]] = {}
        for layer, _, _ in self._layer_kinds:
            lists: tuple[list[tuple[Page, float]], ...] = ([], [])
            for kind, ids in zip(self.kinds.all, self.kinds.experts_of[layer], strict=True):
                if ids:
                    lists[self._divides(kind)].append((kind.page, float(len(ids))))
            found[layer] = lists
        return found

    @cached_property
    def _layer_kinds(self) -> tuple[tuple[int, int, Page], ...]:
        """(first layer, how many, its page) of layers that cost the same."""
        model = self.kinds.model
        groups: dict[object, list[int]] = {}
        page_of = {p.layer: p for p in self.kinds.pages if p.role is Role.LAYER}
        for layer, of_layer in self.kinds.experts_of.items():
            sizes = tuple(map(len, of_layer))
            key = (model.is_routed(layer), model.window_of(layer), page_of[layer].bytes, sizes)
            groups.setdefault(key, []).append(layer)
        return tuple((same[0], len(same), page_of[same[0]]) for same in groups.values())


_Class = tuple[Weights, Way, int | None]


def _alike(found: list[tuple[Page, float]]) -> Alike:
    return tuple(found)  # type: ignore[arg-type]  # a census takes parts of a page as well
