"""What happened: spans per lane and sweep, aggregates, comparison of predicted and measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TextIO

from headrace.machines.bubbles import bubbles
from headrace.schedule.task import Schedule

BUBBLES = "bubbles"
"""Category of the events of a Chrome trace that are no tasks."""


class Span(NamedTuple):
    """One task's run: index into the schedule's tasks, start and end in seconds."""

    task: int
    start: float
    end: float


@dataclass(frozen=True)
class SweepTrace:
    """One sweep as it ran. ``sweep`` is what was given to ``append`` (its binding is complete)."""

    index: int
    schedule: Schedule
    spans: tuple[Span, ...]
    sweep: object = None

    @cached_property
    def start(self) -> float:
        """Start of the first span."""
        return min((s.start for s in self.spans), default=0.0)

    @cached_property
    def end(self) -> float:
        """End of the last span."""
        return max((s.end for s in self.spans), default=0.0)


class Busy(NamedTuple):
    """Seconds and number of tasks of one lane or op."""

    seconds: float = 0.0
    tasks: int = 0


@dataclass
class RunTotals:
    """Aggregates of a run, a sweep at a time; ``add`` is a Sink. Holds no spans."""

    sweeps: int = 0
    start: float | None = None
    end: float = 0.0
    lanes: dict[str, Busy] = field(default_factory=dict)
    ops: dict[str, Busy] = field(default_factory=dict)

    @classmethod
    def of(cls, traces: Iterable[SweepTrace]) -> RunTotals:
        """The totals of ``traces``."""
        totals = cls()
        for trace in traces:
            totals.add(trace)
        return totals

    def add(self, trace: SweepTrace) -> None:
        """Count ``trace`` in."""
        self.sweeps += 1
        self.start = trace.start if self.start is None else min(self.start, trace.start)
        self.end = max(self.end, trace.end)
        lanes: dict[str, list[float]] = {}
        ops: dict[str, list[float]] = {}
        for index, start, end in trace.spans:
            task = trace.schedule.tasks[index]
            lanes.setdefault(task.lane, []).append(end - start)
            ops.setdefault(task.op, []).append(end - start)
        _count(self.lanes, lanes)
        _count(self.ops, ops)

    @property
    def tasks(self) -> int:
        """Number of tasks run."""
        return sum(busy.tasks for busy in self.lanes.values())

    @property
    def wall_seconds(self) -> float:
        """From the first start to the last end."""
        return self.end - (self.start or 0.0)

    @property
    def utilisation(self) -> dict[str, float]:
        """Lane -> share of the wall time in which it was busy."""
        wall = self.wall_seconds
        return {lane: busy.seconds / wall if wall else 0.0 for lane, busy in self.lanes.items()}


def utilisation(traces: Iterable[SweepTrace]) -> dict[str, float]:
    """Lane -> share of the time from the first start to the last end in which it was busy."""
    return RunTotals.of(traces).utilisation


class DiffRow(NamedTuple):
    """Seconds predicted and measured of one thing: ``kind`` is run, lane or op."""

    kind: str
    name: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None when nothing was predicted."""
        return self.measured / self.predicted if self.predicted else None


def diff(predicted: RunTotals, measured: RunTotals) -> list[DiffRow]:
    """The wall time of the whole run, then busy seconds per lane, then per op."""
    rows = [DiffRow("run", "wall", predicted.wall_seconds, measured.wall_seconds)]
    for kind, ours, theirs in (
        ("lane", predicted.lanes, measured.lanes),
        ("op", predicted.ops, measured.ops),
    ):
        for name in dict.fromkeys((*ours, *theirs)):
            pair = ours.get(name, Busy()).seconds, theirs.get(name, Busy()).seconds
            rows.append(DiffRow(kind, name, *pair))
    return rows


def chrome_trace(
    measured: Iterable[SweepTrace], predicted: Iterable[SweepTrace] = ()
) -> dict[str, Any]:
    """Chrome-trace JSON (opens in Perfetto): planned lanes beside measured ones, each from 0."""
    return {"traceEvents": list(_events(measured, predicted)), "displayTimeUnit": "ms"}


def write_chrome_trace(
    file: TextIO, measured: Iterable[SweepTrace], predicted: Iterable[SweepTrace] = ()
) -> None:
    """The same, written an event at a time: a long trace is never held as a whole."""
    file.write('{"displayTimeUnit": "ms", "traceEvents": [')
    for number, event in enumerate(_events(measured, predicted)):
        file.write(",\n" if number else "\n")
        json.dump(event, file)
    file.write("\n]}\n")


def _events(
    measured: Iterable[SweepTrace], predicted: Iterable[SweepTrace]
) -> Iterator[dict[str, Any]]:
    for process, (name, traces) in enumerate((("planned", predicted), ("measured", measured)), 1):
        found = list(traces)
        if found:
            yield _named("process_name", name, process)
            yield from _process(process, found)


def _bubbles(process: int, thread: int, traces: list[SweepTrace]) -> Iterable[dict[str, Any]]:
    """A row below the lanes: where the one that bounds the run stands idle."""
    lanes: dict[str, list[tuple[float, float]]] = {}
    for trace in traces:
        for index, start, end in trace.spans:
            lanes.setdefault(trace.schedule.tasks[index].lane, []).append((start, end))
    found = bubbles(lanes)
    if found is None:
        return
    origin = min(trace.start for trace in traces)
    yield _named("thread_name", f"{BUBBLES} of {found.resource}", process, thread)
    for start, end in found.gaps:
        yield {
            "ph": "X",
            "name": f"{found.resource} is idle",
            "cat": BUBBLES,
            "pid": process,
            "tid": thread,
            "ts": (start - origin) * 1e6,
            "dur": (end - start) * 1e6,
            "args": {},
        }


def _process(process: int, traces: list[SweepTrace]) -> Iterable[dict[str, Any]]:
    origin = min(trace.start for trace in traces)
    lanes = list(dict.fromkeys(lane for trace in traces for lane in trace.schedule.lanes))
    for thread, lane in enumerate(lanes, 1):
        yield _named("thread_name", lane, process, thread)
    for trace in traces:
        for span in trace.spans:
            task = trace.schedule.tasks[span.task]
            yield {
                "ph": "X",
                "name": task.label,
                "cat": task.op.value,
                "pid": process,
                "tid": lanes.index(task.lane) + 1,
                "ts": (span.start - origin) * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "args": {"sweep": trace.index, "task": span.task},
            }
    yield from _bubbles(process, len(lanes) + 1, traces)


def _named(what: str, name: str, process: int, thread: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _count(table: dict[str, Busy], seconds: dict[str, list[float]]) -> None:
    for name, found in seconds.items():
        busy = table.get(str(name), Busy())
        table[str(name)] = Busy(busy.seconds + sum(found), busy.tasks + len(found))
