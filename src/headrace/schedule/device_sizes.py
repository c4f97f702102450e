"""Bytes of each buffer beside a device, per tier: device, pinned and pageable host memory.

Letters as in ``sizes``. Activations of the device take 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.schedule.device import FLIGHTS, KV_SLOTS
from headrace.schedule.moves import SENT_ITEM, sent_widths
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ITEM_BYTES
from headrace.specs.scratch import READ_SLACK, aligned, routing_bytes, scratch_bytes, visits

_STATE = ("requests", "batch", "sampled", "baton")
_LANES = 8  # at most, in one step of a runtime with barriers


def state_sizes() -> dict[Buffer, Size]:
    """Host objects, which no arena holds."""
    names = [*map(Buffer, _STATE), *(Buffer("done", lane) for lane in range(_LANES))]
    return dict.fromkeys(names, Size("state", 0))


def device_sizes(at: Placement, page_bytes: Mapping[int, int]) -> dict[Buffer, Size]:
    """Every buffer that a schedule with compute on the device may touch."""
    tiers = {"device": _device(at, page_bytes), "pinned": _pinned(at), "host": _host(at)}
    return state_sizes() | {
        buffer: Size(tier, aligned(count))
        for tier, bytes_of in tiers.items()
        for buffer, count in bytes_of.items()
    }


def _device(at: Placement, page_bytes: Mapping[int, int]) -> dict[Buffer, int]:
    model, policy = at.model, at.policy
    N, S, mu, D = policy.max_rows, policy.max_seqs, policy.mu, model.hidden
    kv_row = model.kv_layer_bytes(policy.kv_dtype)
    queries, attended = sent_widths(model)
    held = [p for p in at.pages if p.id in policy.resident or p is at.final]
    sizes = {at.home[page.id]: page_bytes.get(page.id, page.bytes) for page in held}
    if at.streamed:
        sizes |= {Buffer("slot", i): policy.slot_bytes for i in range(policy.ring_slots)}
    for mb in range(policy.micro_batches):
        sizes |= {Buffer(name, mb): mu * D * SENT_ITEM for name in ("hidden", "normed")}
        sizes[Buffer("routing", mb)] = routing_bytes(model, policy)
    for flight in range(FLIGHTS):
        sizes[Buffer("partial", flight)] = mu * D * SENT_ITEM
        sizes[Buffer("qkv", flight)] = mu * (queries * SENT_ITEM + kv_row)
        sizes[Buffer("attended", flight)] = mu * max(attended, model.attended_size) * SENT_ITEM
    for slot in range(KV_SLOTS):
        sizes[Buffer("kv_slot", slot)] = _part_bytes(at)
        sizes[Buffer("kv_new", slot)] = mu * kv_row
    sizes |= {part: _part_bytes(at) for part in _parts(at, device=True)}
    if policy.attention_on_device and policy.schedule == "resident":
        sizes |= {Buffer("kv", i): _layer_bytes(at) for i in range(model.layers)}
    grouped = mu * visits(model) * (D + 2 * model.widest)  # gathered rows, gate and up
    return sizes | {
        Buffer("q"): mu * model.q_size * SENT_ITEM,
        Buffer("rows_sent"): N * D * ITEM_BYTES[model.weight_dtype],
        Buffer("inter"): N * model.widest * SENT_ITEM,
        Buffer("final"): S * D * SENT_ITEM,
        Buffer("logits"): S * model.vocab * SENT_ITEM,
        Buffer("scratch"): grouped * SENT_ITEM,
    }


def _pinned(at: Placement) -> dict[Buffer, int]:
    model, policy = at.model, at.policy
    kv_row = model.kv_layer_bytes(policy.kv_dtype)
    queries, attended = sent_widths(model)
    waiting = [page for page in at.streamed if not at.is_staged(page)]
    sizes = {Buffer("pinned", page.id): page.bytes for page in waiting}
    largest = max((p.bytes for p in at.streamed if at.is_staged(p)), default=0) + READ_SLACK
    sizes |= {Buffer("stage", i): largest for i in range(policy.stage_slots)}
    for flight in range(FLIGHTS):
        for name in ("normed_host", "partial_host"):
            sizes[Buffer(name, flight)] = policy.mu * model.hidden * SENT_ITEM
        sizes[Buffer("routing_host", flight)] = routing_bytes(model, policy)
        sizes[Buffer("qkv_host", flight)] = policy.mu * (queries * SENT_ITEM + kv_row)
        sizes[Buffer("attended_host", flight)] = policy.mu * attended * SENT_ITEM
    sizes |= {part: _part_bytes(at) for part in _parts(at, device=False)}
    row = model.hidden * ITEM_BYTES[model.weight_dtype]
    return sizes | {Buffer("rows"): policy.max_rows * row}


def _host(at: Placement) -> dict[Buffer, int]:
    """Pageable: homes that are staged, the embedding table, KV of attention on the processor."""
    on_disk, beside = at.policy.on_disk, at.policy.cpu_experts
    pages = [p for p in (*at.streamed, *at.embed) if p.id not in on_disk]
    pages += [page for page in at.pages if page.id in beside]
    sizes = {Buffer("home", page.id): page.bytes for page in pages}
    if not at.policy.attention_on_device:
        sizes |= {Buffer("kv", layer): _layer_bytes(at) for layer in range(at.model.layers)}
    return sizes | {Buffer("scratch_host"): scratch_bytes(at.model, at.policy)}


def _layer_bytes(at: Placement) -> int:
    tokens = at.policy.kv_blocks * at.policy.kv_block
    return tokens * at.model.kv_layer_bytes(at.policy.kv_dtype)


def _part_bytes(at: Placement) -> int:
    """A micro-batch's share of a layer's KV."""
    return -(-_layer_bytes(at) // at.policy.micro_batches)


def _parts(at: Placement, *, device: bool) -> list[Buffer]:
    M, there = at.policy.micro_batches, at.policy.device_kv_parts
    found = range(there) if device else range(there, M)
    return [Buffer("kv_part", layer * M + mb) for layer in range(at.model.layers) for mb in found]
