"""One sweep in flight: what its task bodies share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.batching.batch import Batch
from headrace.schedule.binding import Binding, Extent


@dataclass
class Sweep:
    """Filled while the sweep runs: BIND sets the batch, ROUTER and READ_PAGE the binding,
    SAMPLE the drawn tokens. ``indices`` holds what the op bodies compute once per sweep."""

    index: int
    batch: Batch = field(default_factory=Batch)
    binding: Binding = field(default_factory=Binding)
    sampled: list[Any] = field(default_factory=list)
    indices: dict[int, Any] = field(default_factory=dict)

    def bind(self, batch: Batch) -> None:
        """Take ``batch`` and its known amounts."""
        self.batch = batch
        self.binding.extents = tuple(
            tuple(Extent(s.rows, s.kv_len) for s in m.segments) for m in batch.micro_batches
        )
        self.binding.samples = tuple(sum(s.sample for s in m.segments) for m in batch.micro_batches)

    def release(self) -> None:
        """Drop what only the bodies needed; amounts and batch stay for the trace."""
        self.indices.clear()
        self.sampled = []
