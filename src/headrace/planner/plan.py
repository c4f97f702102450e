"""A plan: the policy chosen, what memory it takes, what it is expected to do, and why."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.planner.memory_map import MemoryMap
from headrace.planner.simulate import Prediction
from headrace.specs.policy import Policy


@dataclass(frozen=True)
class Overrides:
    """What the user fixes; None leaves the choice to the planner."""

    schedule: str | None = None
    max_seqs: int | None = None
    max_rows: int | None = None
    ring_slots: int | None = None
    disk_lanes: int | None = None
    micro_batches: int | None = None
    kv_blocks: int | None = None
    kv_block: int = 16
    kv_dtype: str = "f16"
    chunk: int = 64
    threads: int = 1


@dataclass(frozen=True)
class Plan:
    """``on_demand_rows`` is the most rows of a sweep for which reading only routed experts is
    predicted to be faster (0: never). ``bound_by`` is ``cpu`` or ``disk``. ``notes`` say in
    words what was decided and why; ``smallest_bytes`` is the least budget that would work."""

    policy: Policy
    memory: MemoryMap
    prediction: Prediction
    on_demand_rows: int
    smallest_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def bound_by(self) -> str:
        """What the job's time goes to."""
        return self.prediction.bound_by
