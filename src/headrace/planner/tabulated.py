"""Prices of one policy as a table over loads: a job of a thousand sweeps asks for a few dozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from headrace.planner.grid import Grid, Point
from headrace.planner.prices import Bounds, Counted, DevicePrices
from headrace.planner.sweeps import Load
from headrace.specs.policy import Policy

_GRID = Grid(per_octave=2, shares=4)


@dataclass
class Tabulated:
    """``simulate.Times`` beside a device. How far play and closed form are apart is played at a
    few loads, ``typical``, and is linear in the share of prompts between them."""

    prices: DevicePrices
    typical: tuple[Load, ...]
    plays: bool = True
    _bounds: dict[Point, Bounds] = field(default_factory=dict, repr=False)
    _counted: dict[Point, Counted] = field(default_factory=dict, repr=False)
    _known: dict[Load, Bounds] = field(default_factory=dict, repr=False)
    _apart: dict[int, float] = field(default_factory=dict, repr=False)

    @property
    def closed(self) -> Tabulated:
        """The closed form alone, from the same table."""
        return replace(self, plays=False)

    @property
    def policy(self) -> Policy:
        """Whose prices they are."""
        return self.prices.policy

    def seconds(self, load: Load) -> float:
        """A steady sweep of ``load``."""
        if not load.rows:
            return 0.0
        least, estimate = self._of(load)
        return max(least, estimate * self._ratio(load))

    def bound(self, load: Load) -> float:
        """No machine does it in less."""
        return self._of(load).least

    def lanes(self, load: Load) -> Mapping[str, float]:
        """Busy seconds by lane."""
        return self._sums(load, "lanes")

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """Bytes by link or memory."""
        return {roof: n for roof, n in self._sums(load, "moved").items() if n}

    def _of(self, load: Load) -> Bounds:
        if load not in self._known:
            least = estimate = 0.0
            for point, weight in _GRID.around(load):
                if point not in self._bounds:
                    self._bounds[point] = self.prices.bounds(_GRID.load_at(point))
                a, b = self._bounds[point]
                least, estimate = least + weight * a, estimate + weight * b
            self._known[load] = Bounds(least, estimate)
        return self._known[load]

    def _sums(self, load: Load, name: str) -> dict[str, float]:
        totals: dict[str, float] = {}
        for point, weight in _GRID.around(load):
            if point not in self._counted:
                self._counted[point] = self.prices.counted(_GRID.load_at(point))
            for key, amount in getattr(self._counted[point], name).items():
                totals[key] = totals.get(key, 0.0) + weight * amount
        return totals

    def _ratio(self, load: Load) -> float:
        """Played seconds over those of the closed form."""
        if not self.plays or not self.typical:
            return 1.0
        share = _share(load)
        known = sorted((_share(load), place) for place, load in enumerate(self.typical))
        ratios = [(at, self._ratio_at(place)) for at, place in known]
        for (low, a), (high, b) in pairwise(ratios):
            if share <= high and high > low:
                return a + (b - a) * max(0.0, share - low) / (high - low)
        return ratios[-1][1]

    def _ratio_at(self, place: int) -> float:
        if place not in self._apart:
            load = self.typical[place]
            estimate = self.prices.estimate(load)
            self._apart[place] = self.prices.played(load).steady / estimate if estimate else 1.0
        return self._apart[place]


def _share(load: Load) -> float:
    """Of rows that are prompt."""
    return load.chunk_rows / max(1, load.rows)
