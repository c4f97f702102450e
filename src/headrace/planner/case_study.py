"""Mixtral-8x7B on an L4 host, as MoE-Lightning's roofline plots count it (Cao et al. 2024).

The paper's counting of decode attention takes QK only; the exact one takes QK and PV. Its FFN
reads all experts once and, per token, a row of the hidden state and one of the intermediate in 16
bits. Kept apart from the work model, which counts what our kernels do: here the published
figures are reproduced.
"""

from __future__ import annotations

from headrace.planner.roofline import Operation
from headrace.specs.model import ModelSpec


def published_attention(
    model: ModelSpec, context: int, kv_bits: float, *, exact: bool
) -> Operation:
    """One decode over ``context`` tokens in one layer; bytes are those of K and V."""
    products = 2 if exact else 1
    flops = products * 2.0 * model.q_size * context
    kv = context * model.kv_elements * kv_bits / 8
    counting = "QK and PV" if exact else "QK"
    return Operation(f"attention, {kv_bits:g}-bit KV, {counting}", flops, _everywhere(kv))


def published_ffn(model: ModelSpec, batch: int) -> Operation:
    """The experts of one layer over ``batch`` tokens, every expert read once."""
    expert = 3 * model.hidden * model.ffn_width
    flops = 2.0 * batch * model.top_k * expert
    weights = 2 * model.experts * expert
    touched = weights + 2.0 * batch * (model.hidden + model.ffn_width)
    return Operation(f"FFN, N = {batch}", flops, _everywhere(touched))


def published_batch(model: ModelSpec, intensity: float) -> float:
    """Tokens at which the FFN has ``intensity``: the inverse of ``published_ffn``."""
    expert = 3 * model.hidden * model.ffn_width
    per_token = 2.0 * model.top_k * expert
    rows = 2.0 * (model.hidden + model.ffn_width)
    return intensity * 2 * model.experts * expert / (per_token - intensity * rows)


def _everywhere(count: float) -> dict[str, float]:
    return {"disk": count, "host": count, "device": count}
