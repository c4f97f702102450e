"""What surrounds attention in a layer, and look-ups: norms, projections, rotations, residual.

Shapes: rows r of one micro-batch, hidden D, query width Q = H d, key width KV d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight
from headrace.kernels.reference.linear import linear
from headrace.kernels.reference.norm import rms_norm
from headrace.kernels.reference.rope import apply_rope
from headrace.kernels.scratch import Scratch
from headrace.specs.scratch import tile_elements

LayerWeights = Mapping[str, Tensor | QuantizedWeight]


@dataclass(frozen=True)
class AttentionRule:
    """How q, k and v are made: ``eps`` of the norms, width of a head, bound on |q|, |k|, |v|."""

    eps: float
    head_dim: int
    clip: float | None = None


def attention_inputs(
    hidden: Tensor,
    weights: LayerWeights,
    rule: AttentionRule,
    cos: Tensor,
    sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scratch: Scratch,
    activations: str = "f32",
) -> None:
    """q [r, Q], k and v [r, KV d] of ``hidden`` [r, D]: norm, projections, clipping, rotation.

    r is that of cos and sin, [r, d/2]; the four matrices may have more rows. ``weights`` holds
    attn_norm, q, k, v, and if there are any their ``_bias``, and q_norm and k_norm, as wide as
    a head or as the whole row. ``activations`` as for ``linear``.
    """
    r, D = cos.shape[0], hidden.shape[1]
    hidden, q, k, v = hidden[:r], q[:r], k[:r], v[:r]
    x = scratch.take(r, D)
    rms_norm(hidden, _vector(weights, "attn_norm"), rule.eps, x)
    tile = scratch.take(tile_elements(q.shape[1], D))
    temp = scratch.take(r * q.shape[1])
    for name, out in (("q", q), ("k", k), ("v", v)):
        bias = _optional(weights, f"{name}_bias")
        linear(x, weights[name], out, tile, bias, activations=activations)
    for name, out in (("q", q), ("k", k)):
        norm = _optional(weights, f"{name}_norm")
        if norm is not None:
            grouped = out.view(-1, norm.shape[0])
            normed = temp[: out.numel()].view(grouped.shape)
            grouped.copy_(rms_norm(grouped, norm, rule.eps, normed))
    if rule.clip is not None:
        for out in (q, k, v):
            out.clamp_(-rule.clip, rule.clip)
    for out in (q, k):
        apply_rope(out.view(r, -1, rule.head_dim), cos, sin, temp[: out.numel()])


def attention_output(
    attended: Tensor,
    weights: LayerWeights,
    eps: float,
    hidden: Tensor,
    normed: Tensor,
    scratch: Scratch,
    rows: int | None = None,
    activations: str = "f32",
) -> None:
    """``hidden`` [r, D] += the projection o of ``attended`` [r, Q]; ``normed`` = its ffn_norm.

    Of the first ``rows`` r, or all of them. ``activations`` as for ``linear``.
    """
    attended, hidden, normed = attended[:rows], hidden[:rows], normed[:rows]
    tile = scratch.take(tile_elements(hidden.shape[1], attended.shape[1]))
    bias = _optional(weights, "o_bias")
    linear(attended, weights["o"], hidden, tile, bias, True, activations)
    rms_norm(hidden, _vector(weights, "ffn_norm"), eps, normed)


def gather_norm(
    hidden: Tensor, rows: Tensor, weight: Tensor, eps: float, out: Tensor, scratch: Scratch
) -> None:
    """``out`` [s, D] = norm of the rows of ``hidden`` whose numbers are in ``rows`` int64 [s]."""
    x = scratch.take(len(rows), hidden.shape[1])
    rms_norm(torch.index_select(hidden, 0, rows, out=x), weight, eps, out)


def embed(tokens: Tensor, table: Tensor, first: int, out: Tensor, scratch: Scratch) -> None:
    """Rows of ``out`` [r, D] = rows of ``table`` for the tokens (int64 [r]) in it; the others stay.

    ``table`` [n, D], in its stored type, holds the rows ``first .. first + n`` of all.
    """
    rows = ((tokens >= first) & (tokens < first + len(table))).nonzero().view(-1)  # [m]
    stored = scratch.take(len(rows), table.shape[1], dtype=table.dtype)
    torch.index_select(table, 0, tokens[rows] - first, out=stored)
    out.index_copy_(0, rows, scratch.take(*stored.shape).copy_(stored))


def widen_rows(stored: Tensor, out: Tensor) -> None:
    """``out`` [r, D] fp32 = ``stored`` [r, D]."""
    out.copy_(stored)


def _vector(weights: LayerWeights, name: str) -> Tensor:
    vector = weights[name]
    assert isinstance(vector, Tensor), f"{name} is never quantized"
    return vector


def _optional(weights: LayerWeights, name: str) -> Tensor | None:
    return _vector(weights, name) if name in weights else None
