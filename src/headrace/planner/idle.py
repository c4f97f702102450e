"""What bounds a steady sweep, and how long that stands idle in it: schedules side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from headrace.machines.trace import SweepTrace
from headrace.machines.virtual import Virtual
from headrace.planner.bindings import binding_of
from headrace.planner.sweeps import Load
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.lanes import H2D, PACKETS
from headrace.schedule.task import Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

_LINK = "link"


@dataclass(frozen=True)
class Steady:
    """One sweep in the steady state: its seconds, and the seconds in which each resource had
    anything to do (lane -> seconds; both queues of uploads are one, ``link``)."""

    schedule: str
    seconds: float
    busy: dict[str, float]

    @property
    def bound_by(self) -> str:
        """The resource that is busy longest."""
        return max(self.busy, key=lambda lane: self.busy[lane])

    def idle(self, lane: str) -> float:
        """Seconds of the sweep in which ``lane`` had nothing to do."""
        return self.seconds - self.busy.get(lane, 0.0)


def compare(
    names: Sequence[str],
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    load: Load,
) -> list[Steady]:
    """A steady sweep of ``load`` under each of the schedules, ``policy`` otherwise the same."""
    return [steady(model, pages, replace(policy, schedule=name), hardware, load) for name in names]


def steady(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    load: Load,
    sweeps: int = 4,
) -> Steady:
    """The last but one of ``sweeps`` appended sweeps, from end to end, on the virtual machine: in
    its tail, pages of the last one are already on their way."""
    work = WorkModel(model, pages, policy, devices=hardware.devices)
    binding = binding_of(load, policy)
    known: dict[tuple[object, ...], Work] = {}

    def work_of(task: Task, sweep: object) -> Work:
        key = (task.op, task.lane, task.layer, task.mb, task.page)
        if key not in known:
            known[key] = work.work(task, binding)
        return known[key]

    machine, phase, tickets = Virtual(work_of, hardware), 0, []
    for _ in range(sweeps):
        tickets.append(machine.append(generate(model, pages, policy, phase), binding))
        phase = next_phase(pages, policy, phase)
    traces = [ticket.wait() for ticket in tickets]
    start, end = traces[-3].end, traces[-2].end
    return Steady(policy.schedule, end - start, _busy(traces, start, end))


def _busy(traces: Iterable[SweepTrace], start: float, end: float) -> dict[str, float]:
    spans: dict[str, list[tuple[float, float]]] = {}
    for trace in traces:
        for span in trace.spans:
            lane = trace.schedule.tasks[span.task].lane
            inside = max(span.start, start), min(span.end, end)
            if inside[0] < inside[1]:
                name = _LINK if lane in (H2D, PACKETS) else lane
                spans.setdefault(name, []).append(inside)
    return {lane: _covered(found) for lane, found in spans.items()}


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
