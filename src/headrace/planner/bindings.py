"""The binding of a sweep that is known by its load only, and what its routing may look like."""

from __future__ import annotations

from headrace.batching.microbatch import used_micro_batches
from headrace.planner.sweeps import Load
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.routing import expected_distinct
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy


def binding_of(load: Load, policy: Policy) -> Binding:
    """The load in as few micro-batches as the batcher uses."""
    extents: list[list[Extent]] = [[] for _ in range(policy.micro_batches)]
    samples = [0] * policy.micro_batches
    micro_batches = used_micro_batches(load.rows, policy)
    mean = max(1, load.decode_kv // max(1, load.decodes))
    for mb in range(micro_batches):
        extents[mb] += [Extent(1, mean)] * _dealt(load.decodes, micro_batches, mb)
        samples[mb] = _dealt(load.samples, micro_batches, mb)
    step = max(1, min(load.chunk_kv, -(-load.chunk_rows // micro_batches)))
    for i, start in enumerate(range(0, load.chunk_rows, step)):
        rows = min(step, load.chunk_rows - start)
        extents[i % micro_batches].append(Extent(rows, max(rows, load.chunk_kv)))
    return Binding(tuple(map(tuple, extents)), tuple(samples))


def _dealt(count: int, places: int, place: int) -> int:
    """Of ``count`` dealt to ``places`` in turn, those that ``place`` gets."""
    return (count + places - 1 - place) // places


def typical_routing(model: ModelSpec, rows: int) -> dict[int, tuple[float, ...]]:
    """Layer -> rows of each expert: as many whole experts as ``rows`` rows visit on average, spread
    evenly, others none. Where pages wait for the router it matters that a page is read or not:
    shares of all pages would overlap with arithmetic as no real page does."""
    experts, visits = model.experts, rows * model.top_k
    wanted = expected_distinct(experts, model.top_k, rows)
    routed = {}
    for layer in filter(model.is_routed, range(model.layers)):
        count = int(wanted * (layer + 1)) - int(wanted * layer)  # the mean over layers is right
        count = max(1, min(count, experts))
        chosen = {(layer + i * experts // count) % experts for i in range(count)}
        own = tuple(visits / len(chosen) if e in chosen else 0.0 for e in range(experts))
        routed[layer] = own + (float(rows),) * (model.experts_in(layer) - experts)
    return routed
