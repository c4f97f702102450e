"""Bytes of each buffer beside a device, per tier: device, pinned and pageable host memory.

Letters as in ``sizes``. Activations of the device take 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from headrace.schedule.device import FLIGHTS, KV_SLOTS
from headrace.schedule.moves import SENT_ITEM, sent_widths
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import READ_SLACK, aligned, routing_bytes, scratch_bytes, visits

_STATE = ("requests", "batch", "sampled", "baton")
_LANES = 8  # at most, in one step of a runtime with barriers


class AlikeBuffers(NamedTuple):
    """Buffers of one name that take ``bytes`` each, one for every index."""

    tier: str
    name: str
    indices: Sequence[int]
    bytes: int


def state_sizes() -> dict[Buffer, Size]:
    """Host objects, which no arena holds."""
    names = [*map(Buffer, _STATE), *(Buffer("done", lane) for lane in range(_LANES))]
    return dict.fromkeys(names, Size("state", 0))


def device_sizes(
    at: Placement, page_bytes: Mapping[int, int], devices: int = 1
) -> dict[Buffer, Size]:
    """Every buffer that a schedule with compute on the device may touch, or on several of them."""
    tiers = {
        "device": _device_weights(at, page_bytes),
        "pinned": _pinned_weights(at),
        "host": _host_weights(at),
    }
    weights = {
        buffer: Size(tier, aligned(count))
        for tier, bytes_of in tiers.items()
        for buffer, count in bytes_of.items()
    }
    others = {
        Buffer(alike.name, index): Size(alike.tier, alike.bytes)
        for alike in working_buffers(at.model, at.policy, devices)
        for index in alike.indices
    }
    return state_sizes() | weights | others


def working_buffers(model: ModelSpec, policy: Policy, devices: int = 1) -> Iterator[AlikeBuffers]:
    """All of them but those of weights: they do not depend on which pages are where. Those of
    ``devices`` are added up: rows of width D are whole on each, all else is divided."""
    of_tiers = {
        "device": _device(model, policy, devices),
        "pinned": _pinned(model, policy),
        "host": _host(model, policy),
    }
    for tier, found in of_tiers.items():
        for name, indices, count in found:
            yield AlikeBuffers(tier, name, indices, aligned(count))


_Sizes = Iterator[tuple[str, Sequence[int], int]]
"""(name, indices, bytes of each)."""

_ONE = range(1)


def _device(model: ModelSpec, policy: Policy, devices: int) -> _Sizes:
    N, S, mu, D = policy.max_rows, policy.max_seqs, policy.mu, devices * model.hidden
    kv_row = model.kv_layer_bytes(policy.kv_dtype)
    queries, attended = sent_widths(model)
    parts, flights, slots = range(policy.micro_batches), range(FLIGHTS), range(KV_SLOTS)
    yield "hidden", parts, mu * D * SENT_ITEM
    yield "normed", parts, mu * D * SENT_ITEM
    yield "routing", parts, devices * routing_bytes(model, policy)
    yield "partial", flights, mu * D * SENT_ITEM
    yield "qkv", flights, mu * (queries * SENT_ITEM + kv_row)
    yield "attended", flights, mu * max(attended, model.attended_size) * SENT_ITEM
    yield "kv_slot", slots, _part_bytes(model, policy)
    yield "kv_new", slots, mu * kv_row
    yield "kv_part", _parts(model, policy, device=True), _part_bytes(model, policy)
    if policy.attention_on_device and policy.schedule == "resident":
        yield "kv", range(model.layers), _layer_bytes(model, policy)
    yield "q", _ONE, mu * model.q_size * SENT_ITEM
    yield "rows_sent", _ONE, N * D * ITEM_BYTES[model.weight_dtype]
    yield "inter", _ONE, N * model.widest * SENT_ITEM
    yield "final", _ONE, S * D * SENT_ITEM
    yield "logits", _ONE, S * model.vocab * SENT_ITEM
    grouped = mu * visits(model) * (D + 2 * model.widest)  # gathered rows, gate and up
    yield "scratch", _ONE, grouped * SENT_ITEM


def _pinned(model: ModelSpec, policy: Policy) -> _Sizes:
    kv_row = model.kv_layer_bytes(policy.kv_dtype)
    queries, attended = sent_widths(model)
    mu, flights = policy.mu, range(FLIGHTS)
    yield "normed_host", flights, mu * model.hidden * SENT_ITEM
    yield "partial_host", flights, mu * model.hidden * SENT_ITEM
    yield "routing_host", flights, routing_bytes(model, policy)
    yield "qkv_host", flights, mu * (queries * SENT_ITEM + kv_row)
    yield "attended_host", flights, mu * attended * SENT_ITEM
    yield "kv_part", _parts(model, policy, device=False), _part_bytes(model, policy)
    yield "rows", _ONE, policy.max_rows * model.hidden * ITEM_BYTES[model.weight_dtype]


def _host(model: ModelSpec, policy: Policy) -> _Sizes:
    """KV of attention on the processor, and what it works in."""
    if not policy.attention_on_device:
        yield "kv", range(model.layers), _layer_bytes(model, policy)
    yield "scratch_host", _ONE, scratch_bytes(model, policy)


def _layer_bytes(model: ModelSpec, policy: Policy) -> int:
    return policy.kv_blocks * policy.kv_block * model.kv_layer_bytes(policy.kv_dtype)


def _part_bytes(model: ModelSpec, policy: Policy) -> int:
    """A micro-batch's share of a layer's KV."""
    return -(-_layer_bytes(model, policy) // policy.micro_batches)


def _parts(model: ModelSpec, policy: Policy, *, device: bool) -> Sequence[int]:
    """Parts of the KV cache at home on the device, or in memory of the host."""
    M, there = policy.micro_batches, policy.device_kv_parts
    found = range(there) if device else range(there, M)
    if len(found) in (0, M):
        return range(model.layers * len(found))
    return [layer * M + mb for layer in range(model.layers) for mb in found]


# -- weights ------------------------------------------------------------------------------------


def _device_weights(at: Placement, page_bytes: Mapping[int, int]) -> dict[Buffer, int]:
    held = [p for p in at.pages if p.id in at.policy.resident or p is at.final]
    sizes = {at.home[page.id]: page_bytes.get(page.id, page.bytes) for page in held}
    if at.streamed:
        sizes |= {Buffer("slot", i): at.policy.slot_bytes for i in range(at.policy.ring_slots)}
    return sizes


def _pinned_weights(at: Placement) -> dict[Buffer, int]:
    waiting = [page for page in at.streamed if not at.is_staged(page)]
    sizes = {Buffer("pinned", page.id): page.bytes for page in waiting}
    largest = max((p.bytes for p in at.streamed if at.is_staged(p)), default=0) + READ_SLACK
    return sizes | {Buffer("stage", i): largest for i in range(at.policy.stage_slots)}


def _host_weights(at: Placement) -> dict[Buffer, int]:
    """Homes that are staged, the embedding table, experts of the processor."""
    on_disk, beside = at.policy.on_disk, at.policy.cpu_experts
    pages = [p for p in (*at.streamed, *at.embed) if p.id not in on_disk]
    pages += [page for page in at.pages if page.id in beside]
    return {Buffer("home", page.id): page.bytes for page in pages}
