"""How many bytes each buffer takes at the policy's maxima.

D hidden, H heads, KV kv_heads, d head_dim, W ffn_width, V vocab, k top_k; N rows and S sequences
of a sweep, mu rows of a micro-batch. Activations are f32.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.schedule.device_sizes import device_sizes, state_sizes
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy
from headrace.specs.scratch import READ_SLACK, aligned, routing_bytes, scratch_bytes

_F32 = 4


def buffer_sizes(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    page_bytes: Mapping[int, int] | None = None,
    devices: int = 1,
) -> dict[Buffer, Size]:
    """Every buffer that a schedule under ``policy`` may touch, with its tier and bytes.

    ``page_bytes`` is the memory each page takes as it is read (page id -> bytes); without it,
    a page's own bytes and READ_SLACK. A ring slot takes ``policy.slot_bytes``. With compute on a
    device, or several, see ``device_sizes``.
    """
    at = Placement(model, pages, policy)
    if policy.on_device:
        return device_sizes(at, page_bytes or {}, devices)
    bytes_of: dict[Buffer, int] = {}
    for page in pages:
        if page.id in policy.resident or page is at.final:
            held = (page_bytes or {}).get(page.id, page.bytes + READ_SLACK)
            bytes_of[at.home[page.id]] = held
    for slot in range(policy.ring_slots if at.streamed else 0):
        bytes_of[Buffer("slot", slot)] = policy.slot_bytes
    sizes = {buffer: Size("host", aligned(count)) for buffer, count in bytes_of.items()}
    cut = any(page.role is Role.EXPERT_UP for page in pages)
    beside = activation_sizes(model, policy, cut=cut, rows=at.rows_from_disk)
    return sizes | beside | state_sizes()


def activation_sizes(
    model: ModelSpec, policy: Policy, *, cut: bool, rows: bool
) -> dict[Buffer, Size]:
    """All buffers but those of weights. ``cut``: experts are cut into pages; ``rows``: embedding
    rows are read by row."""
    bytes_of = _activations(model, policy)
    if cut:
        bytes_of[Buffer("inter")] = policy.max_rows * model.widest * _F32  # [N, W]
    if rows:
        item = ITEM_BYTES[model.weight_dtype]
        bytes_of[Buffer("rows")] = policy.max_rows * model.hidden * item  # [N, D]
    return {buffer: Size("host", aligned(count)) for buffer, count in bytes_of.items()}


def _activations(model: ModelSpec, policy: Policy) -> dict[Buffer, int]:
    S, mu = policy.max_seqs, policy.mu
    bytes_of = {
        Buffer("q"): mu * model.q_size * _F32,  # [mu, H d]
        Buffer("attended"): mu * model.attended_size * _F32,  # [mu, H d]
        Buffer("final"): S * model.hidden * _F32,  # [S, D]
        Buffer("logits"): S * model.vocab * _F32,  # [S, V]
        Buffer("scratch"): scratch_bytes(model, policy),
    }
    for mb in range(policy.micro_batches):
        bytes_of[Buffer("hidden", mb)] = mu * model.hidden * _F32  # [mu, D]
        bytes_of[Buffer("normed", mb)] = mu * model.hidden * _F32  # [mu, D]
        if model.is_moe:
            bytes_of[Buffer("routing", mb)] = routing_bytes(model, policy)
    tokens = policy.kv_blocks * policy.kv_block
    for layer in range(model.layers):  # [2, blocks, KV, block, d], and scales without d
        bytes_of[Buffer("kv", layer)] = tokens * model.kv_layer_bytes(policy.kv_dtype)
    return bytes_of
