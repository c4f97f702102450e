"""A census of pages from shares, before any page is chosen: what ``census`` counts afterwards."""

from __future__ import annotations

from collections.abc import Iterator
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
            if kind not in self.experts and kind.page.role is not Role.EMBED
        )

    def census(self, shares: Shares) -> Census:
        """The census of a policy with ``shares``; counts need not be whole."""
        classes: dict[tuple[Weights, Way, int | None], list[tuple[Kind, float]]] = {}
        streamed = max(0.0, 1.0 - shares.resident - shares.cpu)
        disk = min(shares.disk, streamed)
        divided = (
            (Weights.HELD, Way.STAYS, shares.resident),
            (Weights.BESIDE, Way.STAYS, shares.cpu),
            (Weights.ON_DISK, Way.DISK, disk),
            (Weights.EXPERTS, Way.PINNED, streamed - disk),
        )
        for kind in self.kinds.all:
            turn = self._turn(kind)
            if kind in self.experts:
                for weights, way, share in divided:
                    if share > 1e-9:
                        entry = (kind, share * len(kind.ids))
                        classes.setdefault((weights, way, turn), []).append(entry)
            else:
                held = (Weights.HELD, Way.STAYS)
                key = held if kind.page.expert is not None else _PLAIN[kind.page.role]
                classes.setdefault((*key, turn), []).append((kind, len(kind.ids)))
        return Census(
            self.kinds.model,
            tuple(self._layers(shares.cpu)),
            {key: tuple((k.page, n) for k, n in found) for key, found in classes.items()},  # type: ignore[misc]
        )

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
            own: list[tuple[object, float]] = []
            beside: list[tuple[object, float]] = []
            for kind, ids in zip(self.kinds.all, self.kinds.experts_of[layer], strict=True):
                share = cpu if kind in self.experts else 0.0
                if ids and share > 1e-9:
                    beside.append((kind.page, share * len(ids)))
                if ids and share < 1.0:
                    own.append((kind.page, (1.0 - share) * len(ids)))
            routed = self.kinds.model.is_routed(layer)
            yield AlikeLayers(layer, count, page, routed, _alike(own), _alike(beside))

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


def _alike(found: list[tuple[object, float]]) -> Alike:
    return tuple(found)  # type: ignore[arg-type]  # a census takes parts of a page as well
