"""Steady sweeps played on the virtual machine: how well lanes overlap under one policy."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.machines.replay import Cost, Score
from headrace.planner.bindings import binding_of, typical_routing
from headrace.planner.host_sketch import HostSketch
from headrace.planner.sweeps import Load, SweepTimes, as_run
from headrace.schedule.binding import Binding
from headrace.schedule.generate import list_tasks, next_phase
from headrace.schedule.lanes import GPU
from headrace.schedule.placement import streamed_pages
from headrace.schedule.routing import visit_chance
from headrace.schedule.tally import Kinds
from headrace.schedule.task import Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import alone
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

FEW_VISITED = 0.5
"""Share of the experts that are visited, below which sweeps of on_demand are played by page."""

_LEAST_LAYERS = 4
MOST_TASKS = 1500
"""Of sweeps played page by page; of longer ones as many layers are played as make about as many."""


@dataclass
class PlayedOverlap:
    """An ``Overlap``: rows -> steady seconds over those of the busiest lane.

    Played at powers of four and interpolated in log(rows); at powers of two where reads wait for
    the router, or for all else: which lane is the busiest changes with every row. ``kv`` is the
    tokens a row attends to, ``decodes`` the rows that are decodes at most (the rest is prompt).
    """

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    hardware: Hardware
    kv: int = 256
    decodes: int = 1 << 30
    kinds: Kinds | None = None  # of ``pages``, where they are known already
    _points: dict[int, float] = field(default_factory=dict, repr=False)
    _plays: dict[int, SteadyPlay] = field(default_factory=dict, repr=False)

    def __call__(self, rows: int) -> float:
        """Seconds of a steady sweep of ``rows`` rows over those of its busiest lane."""
        rows = max(1, min(rows, self.policy.max_rows))
        place = math.log(rows, self._base) + 1e-9
        below = int(place)
        share = place - below
        low = self._point(below)
        return low if share < 1e-6 else low + share * (self._point(below + 1) - low)

    def _point(self, power: int) -> float:
        if power not in self._points:
            rows = min(self._base**power, self.policy.max_rows)
            self._points[power] = self._play(rows)
        return self._points[power]

    @property
    def _base(self) -> int:
        return 2 if self.policy.schedule in ("on_demand", "one_by_one") else 4

    def _play(self, rows: int) -> float:
        decodes = min(rows, self.decodes, self.policy.max_seqs)
        chunk = rows - decodes
        load = Load(decodes, decodes * self.kv, chunk, min(chunk, self.kv), decodes)
        least = self._times.lanes(load).busiest
        return max(1.0, self._seconds(load) / least) if least else 1.0

    def _seconds(self, load: Load) -> float:
        """A steady sweep: a sketch of it, or, where few pages wait for the router, page by page: of
        many layers, the line through two shorter models. Once most experts are visited, shares of
        all pages are as good as whole ones."""
        if self.policy.schedule != "on_demand":
            return self._sketch.play(load)
        layers, model = self.model.layers, self.model
        few = model.is_moe and visit_chance(model.experts, model.top_k, load.rows) < FEW_VISITED
        tasks = 2 * sum(1 for page in self.pages if page.layer is not None)
        long = max(_LEAST_LAYERS, min(layers, layers * MOST_TASKS // max(1, tasks)))
        # of so many pages one is as good as the next; and dense first layers are not the others
        many = tasks * _LEAST_LAYERS > layers * MOST_TASKS or model.dense_layers > long // 2
        if many or not few:
            return self._sketch.play(load)
        if long >= layers:
            return self._seconds_of(layers, load)
        short = long // 2
        at_long, at_short = self._seconds_of(long, load), self._seconds_of(short, load)
        return at_long + (layers - long) * (at_long - at_short) / (long - short)

    def _seconds_of(self, layers: int, load: Load) -> float:
        if layers not in self._plays:
            shorter = first_layers(layers, self.model, self.pages, self.policy)
            self._plays[layers] = SteadyPlay(*shorter, self.hardware)
        return self._plays[layers].seconds(load)

    @cached_property
    def _kinds(self) -> Kinds:
        return self.kinds or Kinds(self.model, self.pages)

    @cached_property
    def _times(self) -> SweepTimes:
        apart = replace(self.hardware, contention=0.0)  # as what is played
        return SweepTimes(self.model, self.pages, self.policy, apart, kinds=self._kinds)

    @cached_property
    def _sketch(self) -> HostSketch:
        return HostSketch(self._kinds, self.policy, self.hardware)


def first_layers(
    layers: int, model: ModelSpec, pages: tuple[Page, ...], policy: Policy
) -> tuple[ModelSpec, tuple[Page, ...], Policy]:
    """The same model and policy with no more than the first ``layers`` layers."""
    kept = tuple(p for p in pages if p.layer is None or p.layer < layers)
    resident = policy.resident & {p.id for p in kept}
    return replace(model, layers=layers), kept, replace(policy, resident=resident)


class SteadyPlay:
    """Appended sweeps of one policy, ready to be played at any load. Deriving the waits costs
    about 15 microseconds a task, a play about 5."""

    def __init__(
        self, model: ModelSpec, pages: tuple[Page, ...], policy: Policy, hardware: Hardware
    ) -> None:
        self._policy = policy
        self._model = model
        self._hardware = as_run(hardware, policy.schedule)
        self._work = WorkModel(model, pages, policy)
        self._read = _experts_read(pages, policy)
        lists, phase = [], 0
        for _ in range(_SWEEPS):
            lists.append(list_tasks(model, pages, policy, phase))
            phase = next_phase(pages, policy, phase)
        self._score = Score(lists, _kind_of)
        self._example = {_kind_of(task): task for task in self._score.tasks}

    def seconds(self, load: Load) -> float:
        """From the end of a sweep of ``load`` to the end of the next one, with one more behind it:
        in the tail of each, reads of the one after it are on their way."""
        binding = binding_of(load, self._policy)
        if self._policy.schedule == "on_demand":
            binding.routed = typical_routing(self._model, load.rows, self._read)
        ends = self._score.play({k: self._cost(t, binding) for k, t in self._example.items()}, 3)
        one, two, three = self._score.lasts[:3]
        return max(ends[two:three]) - max(ends[one:two])

    def _cost(self, task: Task, binding: Binding) -> Cost:
        name = task.op.value if task.lane != GPU else f"gpu.{task.op.value}"
        work = self._work.work(task, binding)
        found = alone(work, self._hardware, name)
        fixed = self._hardware.fixed_seconds_of(name, work.chance)
        return Cost(found.seconds + fixed, found.roofs)


def _experts_read(pages: tuple[Page, ...], policy: Policy) -> dict[int, frozenset[int]]:
    """Layer -> experts that do not stay."""
    found: dict[int, set[int]] = {}
    for page in streamed_pages(pages, policy):
        if page.layer is not None and page.expert is not None:
            found.setdefault(page.layer, set()).add(page.expert)
    return {layer: frozenset(experts) for layer, experts in found.items()}


_SWEEPS = 4  # the first starts cold, the last has its tail to itself


def _kind_of(task: Task) -> Hashable:
    return task.op, task.lane, task.mb, task.layer if task.page is None else task.page
