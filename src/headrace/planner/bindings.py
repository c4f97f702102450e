"""The binding of a sweep that is known by its load only, and what its routing may look like."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

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


def typical_routing(
    model: ModelSpec, rows: int, read: Mapping[int, frozenset[int]]
) -> dict[int, tuple[float, ...]]:
    """Layer -> rows of each expert: as many whole experts as ``rows`` rows visit on average, drawn
    as a router would, others none. Where pages wait for the router it matters that a page is read
    or not: shares of all pages would overlap with arithmetic as no real page does.

    ``read``: layer -> experts whose pages are read when they are visited. Of these as many are
    visited, in all layers together, as on average (one in part); in a layer more or fewer.
    (Experts at even distances would not do: where those that stay lie so, too, either all or none
    are met.)
    """
    experts, visits = model.experts, rows * model.top_k
    wanted = expected_distinct(experts, model.top_k, rows)
    chosen: dict[int, set[int]] = {}
    from_disk: dict[int, frozenset[int]] = {}
    due = 0.0
    for layer in filter(model.is_routed, range(model.layers)):
        count = int(wanted * (layer + 1)) - int(wanted * layer)  # the mean over layers is right
        count = max(1, min(count, experts))
        chosen[layer] = set(Random(layer).sample(range(experts), count))
        from_disk[layer] = _read_in(read, layer, experts)
        due += count * len(from_disk[layer]) / experts
    _exchange(chosen, from_disk, experts, int(due + _ROUNDING))
    routed = {
        layer: [visits / len(each) if e in each else 0.0 for e in range(experts)]
        + [float(rows)] * (model.experts_in(layer) - experts)
        for layer, each in chosen.items()
    }
    _exchange_part(routed, chosen, from_disk, due - int(due + _ROUNDING))
    return {layer: tuple(counts) for layer, counts in routed.items()}


_ROUNDING = 1e-9


def _read_in(read: Mapping[int, frozenset[int]], layer: int, experts: int) -> frozenset[int]:
    """Experts of a layer that rows choose among, and that are read."""
    return frozenset(e for e in read.get(layer, ()) if e < experts)


def _exchange(
    chosen: Mapping[int, set[int]], read: Mapping[int, frozenset[int]], experts: int, due: int
) -> None:
    """Let chosen experts that are read change places with others, or the other way round, layer by
    layer, until ``due`` chosen ones are read, or as many as can be."""
    missing = due - sum(len(each & read[layer]) for layer, each in chosen.items())
    before = None
    while missing and missing != before:
        before = missing
        for layer, each in chosen.items():
            stay = frozenset(range(experts)) - read[layer]
            gone, come = (stay, read[layer]) if missing > 0 else (read[layer], stay)
            out, into = sorted(each & gone), sorted(come - each)
            if missing and out and into:
                each.remove(out[len(out) // 2])
                each.add(into[len(into) // 2])
                missing -= 1 if missing > 0 else -1


def _exchange_part(
    routed: Mapping[int, list[float]],
    chosen: Mapping[int, set[int]],
    read: Mapping[int, frozenset[int]],
    part: float,
) -> None:
    """Let ``part`` of an expert that is read (less than a row of it is as likely a read) take the
    place of one that stays: of few layers a read more or less would be a large share."""
    for layer, each in chosen.items():
        out, into = sorted(each - read[layer]), sorted(read[layer] - each)
        if part > _ROUNDING and out and into:
            routed[layer][out[0]] -= part
            routed[layer][into[0]] = part
            return
