"""The pieces of schedules that multiply on a device, per layer and micro-batch.

A micro-batch in flight (queries on their way to the processor, what it attended on its way back)
has one of FLIGHTS sets of buffers: two may be ahead of the one that the device works on.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.schedule.blocks import compute
from headrace.schedule.lanes import CPU, D2H, H2D
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.pages import Page, Role

LOOKAHEAD = 2
"""Micro-batches that attention is ahead of the experts."""

FLIGHTS = LOOKAHEAD + 1
KV_SLOTS = 2
"""One part of the KV cache is attended to while the next one is loaded."""

Step = tuple[int, int]
"""Layer and micro-batch."""

_BATCH = Buffer("batch")
_Q = Buffer("q")
_ATTENDED = Buffer("attended")
_SCRATCH_HOST = Buffer("scratch_host")
_INTER = Buffer("inter")


def steps(at: Placement) -> list[Step]:
    """Every layer's micro-batches, in order."""
    parts = range(at.policy.micro_batches)
    return [(layer, mb) for layer in range(at.model.layers) for mb in parts]


def lookahead(at: Placement) -> int:
    """How far attention may run ahead: a micro-batch cannot overtake itself."""
    return min(LOOKAHEAD, at.policy.micro_batches)


# -- attention on the processor -----------------------------------------------------------------


def attend_on_cpu(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """PreAttn, OffloadQKV, CPUAttn of Algorithm 1 (Cao et al. 2024)."""
    flight, weights = _flight(at, layer, mb), at.home[at.layers[layer].id]
    qkv, sent = Buffer("qkv", flight), Buffer("qkv_host", flight)
    page = at.layers[layer].id
    reads = (Buffer("hidden", mb), weights)
    yield compute(at, Op.PRE_ATTN, reads, (qkv,), layer=layer, mb=mb, page=page)
    yield Task(Op.OFFLOAD_QKV, D2H, (_BATCH, qkv), (sent,), layer, mb)
    kv, result = Buffer("kv", layer), Buffer("attended_host", flight)
    yield Task(Op.ATTN, CPU, (_BATCH, sent, kv), (result, kv, _SCRATCH_HOST), layer, mb)


def load_hidden(at: Placement, layer: int, mb: int) -> Task:
    """LoadHidden: what the processor attended, back to the device."""
    flight = _flight(at, layer, mb)
    reads = (_BATCH, Buffer("attended_host", flight))
    return Task(Op.LOAD_HIDDEN, H2D, reads, (Buffer("attended", flight),), layer, mb)


# -- attention on the device --------------------------------------------------------------------


def attend_on_device(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """PreAttn and attention over the part of the KV cache that was loaded, or stays there."""
    page, here = at.layers[layer], {"layer": layer, "mb": mb}
    cached, new = _kv(at, layer, mb)
    reads: tuple[Buffer, ...] = (Buffer("hidden", mb), at.home[page.id])
    if cached == new:  # appended in place
        reads = (*reads, new)
    yield compute(at, Op.PRE_ATTN, reads, (_Q, new), page=page.id, **here)
    looked_at = dict.fromkeys((_Q, cached, new))
    yield compute(at, Op.ATTN, tuple(looked_at), (_ATTENDED,), **here)


def load_kv(at: Placement, layer: int, mb: int) -> list[Task]:
    """The cached keys and values of a micro-batch; nothing where they stay on the device."""
    if stays(at, mb):
        return []
    part, (slot, _) = _part(at, layer, mb), _kv(at, layer, mb)
    return [Task(Op.LOAD_KV, H2D, (_BATCH, part), (slot,), layer, mb)]


def store_kv(at: Placement, layer: int, mb: int) -> list[Task]:
    """The new ones, to where the others are."""
    if stays(at, mb):
        return []
    part, (_, new) = _part(at, layer, mb), _kv(at, layer, mb)
    return [Task(Op.STORE_KV, D2H, (_BATCH, new, part), (part,), layer, mb)]


def stays(at: Placement, mb: int) -> bool:
    """Whether the KV of micro-batch ``mb`` is at home on the device (r_c)."""
    return mb < at.policy.device_kv_parts


# -- experts ------------------------------------------------------------------------------------


def post_attention(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """PostAttn: output projection, router, all experts of one micro-batch."""
    yield from _route(at, layer, mb)
    yield from _experts_on_cpu(at, layer, mb)
    if at.own_experts(layer):
        yield _moe(at, layer, mb)
    yield from _combine(at, layer, mb)


def post_attention_by_page(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """The same with a task per page, so that experts start as their pages arrive."""
    yield from _route(at, layer, mb)
    yield from _experts_on_cpu(at, layer, mb)
    yield from (_expert(at, page, layer, mb) for page in at.own_experts(layer))
    yield from _combine(at, layer, mb)


def _route(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    page, hidden, normed = at.layers[layer], Buffer("hidden", mb), Buffer("normed", mb)
    weights, here = at.home[page.id], {"layer": layer, "mb": mb, "page": page.id}
    attended = _ATTENDED
    if not at.policy.attention_on_device:
        attended = Buffer("attended", _flight(at, layer, mb))
    yield compute(at, Op.POST_ATTN, (attended, weights, hidden), (hidden, normed), **here)
    if at.model.is_routed(layer):
        routing = (Buffer("routing", mb),)
        yield compute(at, Op.ROUTER, (normed, weights), routing, **here)


def _experts_on_cpu(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """The processor's share, started before the device's own: it takes longer."""
    pages = at.cpu_experts(layer)
    if not pages:
        return
    flight = _flight(at, layer, mb)
    routing = _routing(at, layer, mb)
    sent = (Buffer("normed_host", flight), *(Buffer("routing_host", flight) for _ in routing))
    reads = (_BATCH, Buffer("normed", mb), *routing)
    yield Task(Op.OFFLOAD_HIDDEN, D2H, reads, sent, layer, mb)
    weights = (at.home[page.id] for page in pages)
    writes = (Buffer("partial_host", flight), _SCRATCH_HOST)
    yield Task(Op.MOE, CPU, (_BATCH, *sent, *weights), writes, layer, mb)


def _combine(at: Placement, layer: int, mb: int) -> Iterator[Task]:
    """One sum where two kinds of processor share a layer."""
    if not at.cpu_experts(layer):
        return
    flight, hidden = _flight(at, layer, mb), Buffer("hidden", mb)
    result, partial = Buffer("partial_host", flight), Buffer("partial", flight)
    yield Task(Op.LOAD_PARTIAL, H2D, (_BATCH, result), (partial,), layer, mb)
    yield compute(at, Op.COMBINE, (partial, hidden), (hidden,), layer=layer, mb=mb)


def _moe(at: Placement, layer: int, mb: int) -> Task:
    """The device's experts of a layer for one micro-batch: one grouped product."""
    pages = at.own_experts(layer)
    weights = [at.home[page.id] for page in pages]
    inter = (_INTER,) if any(p.role is Role.EXPERT_UP for p in pages) else ()
    hidden = Buffer("hidden", mb)
    reads = (Buffer("normed", mb), *_routing(at, layer, mb), *weights, hidden)
    return compute(at, Op.MOE, reads, (hidden, *inter), layer=layer, mb=mb)


def _expert(at: Placement, page: Page, layer: int, mb: int) -> Task:
    hidden, normed, weights = Buffer("hidden", mb), Buffer("normed", mb), at.home[page.id]
    routing = _routing(at, layer, mb)
    reads: tuple[Buffer, ...] = (normed, *routing, weights, hidden)
    op, writes = Op.EXPERT, hidden
    if page.role is Role.EXPERT_UP:
        op, writes = Op.EXPERT_UP, _INTER
        reads = (normed, *routing, weights, *((_INTER,) if page.part else ()))
    elif page.role is Role.EXPERT_DOWN:
        op, reads = Op.EXPERT_DOWN, (_INTER, *routing, weights, hidden)
    where = {"layer": layer, "mb": mb, "page": page.id, "expert": page.expert}
    return compute(at, op, reads, (writes,), **where)


# -----------------------------------------------------------------------------------------------


def _flight(at: Placement, layer: int, mb: int) -> int:
    return (layer * at.policy.micro_batches + mb) % FLIGHTS


def _part(at: Placement, layer: int, mb: int) -> Buffer:
    return Buffer("kv_part", layer * at.policy.micro_batches + mb)


def _kv(at: Placement, layer: int, mb: int) -> tuple[Buffer, Buffer]:
    """Where the device finds cached keys and values, and where it puts new ones."""
    if stays(at, mb):
        part = _part(at, layer, mb)
        return part, part
    slot = (layer * at.policy.micro_batches + mb) % KV_SLOTS
    return Buffer("kv_slot", slot), Buffer("kv_new", slot)


def _routing(at: Placement, layer: int, mb: int) -> tuple[Buffer, ...]:
    return (Buffer("routing", mb),) if at.model.is_routed(layer) else ()
