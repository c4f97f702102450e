"""What happened: spans per lane and sweep, aggregates, comparison of predicted and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from headrace.schedule.task import Schedule


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

    @property
    def start(self) -> float:
        """Start of the first span."""
        return min((s.start for s in self.spans), default=0.0)

    @property
    def end(self) -> float:
        """End of the last span."""
        return max((s.end for s in self.spans), default=0.0)
