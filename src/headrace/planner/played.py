"""Steady sweeps played on the virtual machine: how well lanes overlap under one policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.machines.virtual import Virtual
from headrace.planner.bindings import binding_of
from headrace.planner.host_sketch import HostSketch
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.tally import Kinds
from headrace.schedule.task import Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy


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
    kinds: Kinds | None = None  # of ``pages``, where they are known already
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
        least = self._times.lanes(load).busiest
        return max(1.0, self._sketch.play(load) / least) if least else 1.0

    @cached_property
    def _kinds(self) -> Kinds:
        return self.kinds or Kinds(self.model, self.pages)

    @cached_property
    def _times(self) -> SweepTimes:
        return SweepTimes(self.model, self.pages, self.policy, self.hardware, kinds=self._kinds)

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
