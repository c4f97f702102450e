"""What searches for one job find out once, on any number of machines."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.planner.decided import Decisions
from headrace.planner.prices import Sketches


@dataclass(frozen=True)
class Known:
    """Sketches that were drawn, and what the batcher decided."""

    sketches: Sketches = field(default_factory=Sketches)
    decisions: Decisions = field(default_factory=Decisions)
