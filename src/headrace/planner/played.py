"""Steady sweeps played on the virtual machine: how well lanes overlap under one policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from headrace.batching.microbatch import used_micro_batches
from headrace.machines.virtual import Virtual
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.task import Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work
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
        shorter = first_layers(layers, self.model, self.pages, self.policy)
        return steady_seconds(*shorter, self.hardware, load)


def first_layers(
    layers: int, model: ModelSpec, pages: tuple[Page, ...], policy: Policy
) -> tuple[ModelSpec, tuple[Page, ...], Policy]:
    """The same model and policy with no more than the first ``layers`` layers."""
    kept = tuple(p for p in pages if p.layer is None or p.layer < layers)
    resident = policy.resident & {p.id for p in kept}
    return replace(model, layers=layers), kept, replace(policy, resident=resident)


def steady_seconds(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    load: Load,
    sweeps: int = 2,
) -> float:
    """Seconds of the last of ``sweeps`` appended sweeps of equal load, seam overlap included."""
    work = WorkModel(model, pages, policy)
    binding = binding_of(load, policy)
    seen: dict[tuple[object, ...], Work] = {}

    def work_of(task: Task, sweep: object) -> Work:
        key = (task.op, task.lane, task.mb, task.page)
        if key not in seen:
            seen[key] = work.work(task, binding)
        return seen[key]

    machine = Virtual(work_of, hardware)
    tickets, phase = [], 0
    for _ in range(sweeps):
        tickets.append(machine.append(generate(model, pages, policy, phase), binding))
        phase = next_phase(pages, policy, phase)
    ends = [ticket.wait().end for ticket in tickets]
    return ends[-1] - ends[-2]


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
