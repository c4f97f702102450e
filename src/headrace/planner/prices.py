"""What a steady sweep takes under any policy on any machine, cheaply and for any load.

Beside a device, a sketch of the schedule is played on the virtual machine and its layers and
micro-batches are extended to the model's (``sketch``, ``costs``); on a CPU and its disk,
``SweepTimes`` and a played overlap do the same. Both answer the same questions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from headrace.machines.replay import Cost
from headrace.planner.census import Weights, take_census
from headrace.planner.costs import SweepCosts, Totals
from headrace.planner.device_kinds import kinds_of
from headrace.planner.estimate import about
from headrace.planner.grid import Grid, Point
from headrace.planner.played import PlayedOverlap
from headrace.planner.sketch import LAYERS, PARTS, Kind, Shape, Sketch, shape_of
from headrace.planner.sweeps import Load, SweepTimes
from headrace.planner.works import Works
from headrace.schedule.tally import Kinds
from headrace.schedule.work_vector import LANE
from headrace.specs.hardware import D2H, DISK, DRAM, H2D, HBM, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

MEMORIES = (DISK, DRAM, H2D, D2H, HBM)
"""Roofs that count bytes."""

_GRID = Grid(per_octave=4, shares=2)
"""Where play and closed form are compared: their ratio bends where another lane is the bound."""


class Prices(Protocol):
    """Seconds and bytes of one policy's sweeps."""

    policy: Policy

    def seconds(self, load: Load) -> float:
        """A steady sweep of ``load``: tabulated and interpolated."""

    def cold_seconds(self, load: Load) -> float:
        """A sweep that nothing overlaps: it starts when the one before has ended."""

    def bound(self, load: Load) -> float:
        """No machine does it in less: the busiest roof or lane at its full rate."""

    def estimate(self, load: Load) -> float:
        """About ``seconds``, without a play: for ranking."""

    def lanes(self, load: Load) -> Mapping[str, float]:
        """Busy seconds by lane (``disk`` for all of them, ``link`` for both queues to it)."""

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """Bytes by link or memory: disk, dram, h2d, d2h, hbm."""


@dataclass
class Sketches:
    """Sketches drawn so far. Give the same one to every ``price`` of a search: policies of equal
    shape share theirs."""

    _drawn: dict[Shape, Sketch] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self._drawn)

    def of(self, shape: Shape) -> Sketch:
        """The sketch of ``shape``."""
        if shape not in self._drawn:
            self._drawn[shape] = Sketch(shape)
        return self._drawn[shape]


def price(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    sketches: Sketches | None = None,
    mean_kv: int = 256,
    kinds: Kinds | None = None,
    drawn_layers: tuple[int, int] = LAYERS,
) -> Prices:
    """The prices of ``policy``. ``mean_kv`` is the tokens a row attends to: on a CPU, overlap is
    played for it only. Sketches of fewer ``drawn_layers`` are faster to draw and play, and a few
    percent off. Raises UsageError for a policy that cannot be honoured, or a machine
    without a rate that it needs."""
    if policy.on_device:
        shared = Sketches() if sketches is None else sketches
        found = kinds or Kinds(model, pages)
        return DevicePrices(found, policy, hardware, shared, drawn_layers)
    return HostPrices(model, pages, policy, hardware, mean_kv, kinds)


class Played(NamedTuple):
    """Seconds of a sweep on the virtual machine: one of many, and one by itself."""

    steady: float
    cold: float


class Bounds(NamedTuple):
    """``bound`` and ``estimate`` of one load."""

    least: float
    estimate: float


class Counted(NamedTuple):
    """``lanes`` and ``bytes_moved`` of one load."""

    lanes: Mapping[str, float]
    moved: Mapping[str, float]


class DevicePrices:
    """Prices beside a device: sketches played on the virtual machine.

    ``seconds`` is ``estimate`` of the load itself times how far play and estimate are apart, which
    changes slowly: it is played on a grid of loads and interpolated.
    """

    def __init__(
        self,
        kinds: Kinds,
        policy: Policy,
        hardware: Hardware,
        sketches: Sketches,
        drawn_layers: tuple[int, int] = LAYERS,
    ) -> None:
        model = kinds.model
        self.policy = policy
        self._layers = model.layers
        self._census = take_census(kinds, policy)
        self._works = Works(model, self._census.examples(), policy, hardware)
        self._costs = SweepCosts(self._census, policy, self._works)
        self._sketches = sketches
        self._drawn_layers = drawn_layers
        table = Weights.HEAD if model.tied_embeddings else Weights.TABLE
        turns = {turn for _, _, turn in self._census.classes if turn is not None}
        self._kinds = kinds_of(
            policy,
            sorted(turns),
            rows_read=not self._census.all_resident(table),
            cpu=bool(policy.cpu_experts),
            disk=bool(policy.on_disk),
        )
        self._grid: dict[Point, Played] = {}
        self._known: dict[Load, Played] = {}

    def seconds(self, load: Load) -> float:
        """See Prices. A new point of the grid costs a few milliseconds, others a tenth of one."""
        return self._tabulated(load).steady

    def cold_seconds(self, load: Load) -> float:
        """See Prices."""
        return self._tabulated(load).cold

    def bound(self, load: Load) -> float:
        """See Prices."""
        return self._least(self._totals(load))

    def estimate(self, load: Load) -> float:
        """See Prices: a fifth of a millisecond, and not below ``bound``."""
        return self.bounds(load).estimate

    def lanes(self, load: Load) -> Mapping[str, float]:
        """See Prices."""
        return self.counted(load).lanes

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """See Prices."""
        return {roof: amount for roof, amount in self.counted(load).moved.items() if amount}

    def counted(self, load: Load) -> Counted:
        """What needs no play, and says nothing of how long it takes."""
        lanes: dict[str, float] = {}
        moved = dict.fromkeys(MEMORIES, 0.0)
        for kind, total in self._totals(load).items():
            seconds = total.alone / self._side_by_side(kind)
            lanes[kind.lane] = lanes.get(kind.lane, 0.0) + seconds
            for roof in MEMORIES:
                moved[roof] += total.amounts.get(roof, 0.0)
        return Counted(lanes, moved)

    def bounds(self, load: Load) -> Bounds:
        """``bound`` and ``estimate``, from one count of the tasks."""
        totals = self._totals(load)
        least = self._least(totals)
        return Bounds(least, max(least, about(self.policy, self._layers, totals)))

    def played(self, load: Load) -> Played:
        """Steady and cold seconds as the virtual machine plays them, nothing tabulated."""
        by_parts = []
        for row in self._drawn:
            found = [self._play(sketch, load) for sketch in row]
            by_parts.append(_extended(found, [s.shape.layers for s in row], self._layers))
        parts = [row[0].shape.parts for row in self._drawn]
        return _extended(by_parts, parts, self.policy.micro_batches)

    def _play(self, sketch: Sketch, load: Load) -> Played:
        totals = self._costs.of(load, sketch.counts)
        ends = sketch.score.play(self._each(sketch, totals), 2)
        first, second = sketch.score.lasts[:2]
        one, two = max(ends[:first]), max(ends[first:second])
        return Played(two - one, one)

    def _each(self, sketch: Sketch, totals: Totals) -> dict[Hashable, Cost]:
        costs: dict[Hashable, Cost] = {}
        for kind, total in totals.items():
            share = sketch.share(kind, self._layers, self.policy.micro_batches)
            roofs = {roof: seconds * share for roof, seconds in total.roofs.items()}
            costs[kind] = Cost(total.alone * share, roofs)
        return costs

    def _totals(self, load: Load) -> Totals:
        return self._costs.of(load, self._kinds)

    @cached_property
    def _drawn(self) -> list[list[Sketch]]:
        """Drawn when something is played for the first time."""
        return [
            [
                self._sketches.of(shape_of(self._census, self.policy, n, m))
                for n in _few(self._layers, self._drawn_layers)
            ]
            for m in _few(self.policy.micro_batches, PARTS)
        ]

    def _least(self, totals: Totals) -> float:
        """The busiest lane, or roof that lanes share, at its full rate."""
        lanes: dict[str, float] = {}
        amounts: dict[str, float] = {}
        for kind, total in totals.items():
            seconds = total.least / self._side_by_side(kind)
            lanes[kind.lane] = lanes.get(kind.lane, 0.0) + seconds
            for roof, amount in total.amounts.items():
                amounts[roof] = amounts.get(roof, 0.0) + amount
        shared = (
            a / self._works.rate(roof) for roof, a in amounts.items() if not roof.startswith(LANE)
        )
        return max(max(lanes.values(), default=0.0), max(shared, default=0.0))

    def _side_by_side(self, kind: Kind) -> int:
        return self.policy.disk_lanes if kind.lane == "disk" else 1

    # -- the grid ------------------------------------------------------------------------

    def _tabulated(self, load: Load) -> Played:
        if load not in self._known:
            self._known[load] = self._interpolated(load)
        return self._known[load]

    def _interpolated(self, load: Load) -> Played:
        if not load.rows:
            return Played(0.0, 0.0)
        least, estimate = self.bounds(load)
        apart = [0.0, 0.0]
        for point, weight in _GRID.around(load):
            ratio = self._ratio(point)
            apart = [a + weight * r for a, r in zip(apart, ratio, strict=True)]
        return Played(*(max(least, estimate * a) for a in apart))

    def _ratio(self, point: Point) -> Played:
        """Played seconds over the estimate at a point of the grid."""
        if point not in self._grid:
            load = _GRID.load_at(point)
            estimate = self.estimate(load)
            self._grid[point] = Played(*(s / estimate for s in self.played(load)))
        return self._grid[point]


def _few(count: int, drawn: tuple[int, int]) -> tuple[int, ...]:
    """How many of ``count`` alike things to draw: all, or two numbers of them."""
    return (count,) if count <= drawn[-1] else drawn


def _extended(found: Sequence[Played], drawn: Sequence[int], count: int) -> Played:
    """The line through what one or two numbers of alike things take, at ``count`` of them."""
    if len(found) == 1:
        return found[0]
    (a, b), (few, more) = found, drawn
    beyond = (count - more) / (more - few)
    return Played(*(y + (y - x) * beyond for x, y in zip(a, b, strict=True)))


class HostPrices:
    """Prices on a CPU and its disk: ``SweepTimes``, with overlap as played."""

    def __init__(
        self,
        model: ModelSpec,
        pages: tuple[Page, ...],
        policy: Policy,
        hardware: Hardware,
        mean_kv: int = 256,
        kinds: Kinds | None = None,
        overlap: PlayedOverlap | None = None,
    ) -> None:
        self.policy = policy
        kinds = kinds or Kinds(model, pages)
        if overlap is None:
            overlap = PlayedOverlap(model, pages, policy, hardware, mean_kv, kinds=kinds)
        self.times = SweepTimes(model, pages, policy, hardware, overlap, kinds)
        self._plain = hardware.ideal
        self._ideal = SweepTimes(model, pages, policy, self._plain, kinds=kinds)

    def seconds(self, load: Load) -> float:
        """See Prices."""
        return max(self.times.seconds(load), self.bound(load)) if load.rows else 0.0

    def cold_seconds(self, load: Load) -> float:
        """See Prices: what the first layers need is read before anything is computed."""
        lanes = self.times.lanes(load)
        return min(self.seconds(load) + self.times.tail_seconds(load), lanes.cpu + lanes.disk)

    def bound(self, load: Load) -> float:
        """See Prices."""
        return self._ideal.lanes(load).busiest

    def estimate(self, load: Load) -> float:
        """See Prices: the busiest lane."""
        lanes = self.times.lanes(load)
        together = lanes.cpu + lanes.disk
        return together if self.policy.schedule == "one_by_one" else lanes.busiest

    def lanes(self, load: Load) -> Mapping[str, float]:
        """See Prices."""
        return self.times.lanes(load)._asdict()

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """See Prices: of the disk only."""
        return self.times.bytes_moved(load)
