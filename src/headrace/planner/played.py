"""Steady sweeps played on the virtual machine: how well lanes overlap under one policy."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from headrace.batching.microbatch import used_micro_batches
from headrace.machines.replay import Cost, Score
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.lanes import GPU
from headrace.schedule.task import Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

MOST_TASKS = 1500
"""Of longer sweeps, as many layers are played as make about this many tasks."""


@dataclass
class PlayedOverlap:
    """An ``Overlap``: rows -> steady seconds over those of the busiest lane.

    Played at powers of four and interpolated in log(rows). ``kv`` is the tokens a row attends
    to, ``decodes`` the rows that are decodes at most (the rest is prompt).
    """

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    hardware: Hardware
    kv: int = 256
    decodes: int = 1 << 30
    _points: dict[int, float] = field(default_factory=dict, repr=False)
    _plays: dict[int, SteadyPlay] = field(default_factory=dict, repr=False)

    def __call__(self, rows: int) -> float:
        """Seconds of a steady sweep of ``rows`` rows over those of its busiest lane."""
        rows = max(1, min(rows, self.policy.max_rows))
        below = (rows.bit_length() - 1) // 2
        share = math.log(rows, 4) - below
        low = self._point(below)
        return low if share < 1e-9 else low + share * (self._point(below + 1) - low)

    def _point(self, power: int) -> float:
        if power not in self._points:
            rows = min(4**power, self.policy.max_rows)
            self._points[power] = self._play(rows)
        return self._points[power]

    def _play(self, rows: int) -> float:
        decodes = min(rows, self.decodes, self.policy.max_seqs)
        chunk = rows - decodes
        load = Load(decodes, decodes * self.kv, chunk, min(chunk, self.kv), decodes)
        times = SweepTimes(self.model, self.pages, self.policy, self.hardware)
        least = times.lanes(load).busiest
        return max(1.0, self._seconds(load) / least) if least else 1.0

    def _seconds(self, load: Load) -> float:
        """A steady sweep; of many layers, the line through two shorter models."""
        layers = self.model.layers
        tasks = 2 * sum(1 for p in self.pages if p.layer is not None)
        long = max(4, min(layers, layers * MOST_TASKS // max(1, tasks)))
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
        self._hardware = hardware
        self._work = WorkModel(model, pages, policy)
        schedules, phase = [], 0
        for _ in range(_SWEEPS):
            schedules.append(generate(model, pages, policy, phase))
            phase = next_phase(pages, policy, phase)
        self._score = Score(schedules, _kind_of)
        self._example = {_kind_of(task): task for task in self._score.tasks}

    def seconds(self, load: Load) -> float:
        """From the end of a sweep of ``load`` to the end of the next one, with one more behind it:
        in the tail of each, reads of the one after it are on their way."""
        binding = binding_of(load, self._policy)
        ends = self._score.play({k: self._cost(t, binding) for k, t in self._example.items()}, 3)
        one, two, three = self._score.lasts[:3]
        return max(ends[two:three]) - max(ends[one:two])

    def _cost(self, task: Task, binding: Binding) -> Cost:
        name = task.op.value if task.lane != GPU else f"gpu.{task.op.value}"
        work = self._work.work(task, binding)
        roofs = work.seconds(self._hardware, self._hardware.efficiency_of(name, work.rows))
        return Cost(max(roofs.values(), default=0.0) + self._hardware.task_seconds, roofs)


_SWEEPS = 4  # the first starts cold, the last has its tail to itself


def _kind_of(task: Task) -> Hashable:
    return task.op, task.lane, task.mb, task.layer if task.page is None else task.page


def steady_seconds(
    model: ModelSpec, pages: tuple[Page, ...], policy: Policy, hardware: Hardware, load: Load
) -> float:
    """Seconds of one of many appended sweeps of equal load, seam overlap included."""
    return SteadyPlay(model, pages, policy, hardware).seconds(load)


def binding_of(load: Load, policy: Policy) -> Binding:
    """The load in as few micro-batches as the batcher uses."""
    extents: list[list[Extent]] = [[] for _ in range(policy.micro_batches)]
    samples = [0] * policy.micro_batches
    micro_batches = used_micro_batches(load.rows, policy)
    mean = max(1, load.decode_kv // max(1, load.decodes))
    for i in range(load.decodes):
        extents[i % micro_batches].append(Extent(1, mean))
    for i in range(load.samples):
        samples[i % micro_batches] += 1
    step = max(1, min(load.chunk_kv, -(-load.chunk_rows // micro_batches)))
    for i, start in enumerate(range(0, load.chunk_rows, step)):
        rows = min(step, load.chunk_rows - start)
        extents[i % micro_batches].append(Extent(rows, max(rows, load.chunk_kv)))
    return Binding(tuple(map(tuple, extents)), tuple(samples))
