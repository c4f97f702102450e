"""The binding of a sweep that is known by its load only."""

from __future__ import annotations

from headrace.batching.microbatch import used_micro_batches
from headrace.planner.sweeps import Load
from headrace.schedule.binding import Binding, Extent
from headrace.specs.policy import Policy


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
