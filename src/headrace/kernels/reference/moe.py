"""Routing of rows to experts, and one expert (or dense FFN) on the rows routed to it.

Shapes: rows of one micro-batch r, hidden D, width W, experts E, top_k k, expert rows m.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.reference.linear import linear
from headrace.kernels.routed import RouterRule, Routing, Scoring
from headrace.kernels.scratch import Scratch
from headrace.kernels.silu import SILU, Silu


def route(
    normed: Tensor,
    router: Tensor,
    rule: RouterRule,
    routing: Routing,
    scratch: Scratch,
    bias: Tensor | None = None,
    rows: int | None = None,
) -> None:
    """The best k experts of the first ``rows`` rows (of all) and their gates, by ``rule``.

    ``normed`` [r, D], ``router`` [E, D] in its stored type; ``bias`` [E] fp32 shifts the choice
    and not the gates; fills ``routing``. Of equal scores the lower number wins.
    """
    normed = normed[:rows]
    count, (experts, hidden) = normed.shape[0], router.shape
    k = routing.ids.shape[1]
    rule.check(experts, k)
    scores = scratch.take(count, experts)
    linear(normed, router, scores, scratch.take(experts * hidden))
    scored(scores, rule.scoring)
    choice = scores if bias is None else scores + bias
    if rule.groups > 1:
        choice = _within_groups(choice, rule)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, :k]  # [r, k]
    gates = routing.gates[:count]
    torch.gather(scores, 1, ids, out=gates)
    if rule.renormalise:
        gates.div_(gates.sum(-1, keepdim=True).add_(1e-20))
    gates.mul_(rule.scale)
    routing.ids[:count].copy_(ids)
    _sort(ids.reshape(-1), gates.reshape(-1), k, routing, scratch)


def scored(products: Tensor, scoring: Scoring) -> Tensor:
    """Scores [r, E] of a router's products, in place."""
    if scoring is Scoring.SIGMOID:
        return products.sigmoid_()
    return torch.softmax(products, -1, out=products)


def _within_groups(choice: Tensor, rule: RouterRule) -> Tensor:
    """``choice`` [r, E] with -inf outside each row's best groups."""
    grouped = choice.view(len(choice), rule.groups, -1)
    worth = grouped.topk(rule.per_group, -1).values.sum(-1)  # [r, groups]
    best = worth.sort(dim=-1, descending=True, stable=True).indices[:, : rule.kept]
    out = torch.ones_like(worth, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(out[..., None], -torch.inf).view(choice.shape)


def _sort(ids: Tensor, gates: Tensor, k: int, routing: Routing, scratch: Scratch) -> None:
    """Row numbers and gates by ascending expert, then ascending row."""
    entries = ids.numel()
    order = scratch.take(entries, dtype=torch.int64)
    torch.sort(ids, stable=True, out=(scratch.take(entries, dtype=torch.int64), order))
    torch.index_select(gates, 0, order, out=routing.weights[:entries])
    routing.rows[:entries].copy_(order.floor_divide_(k))
    routing.starts.zero_()
    routing.starts[1:].index_add_(0, ids, torch.ones_like(ids)).cumsum_(0)


def expert(
    x: Tensor,
    weights: Mapping[str, Any],
    out: Tensor,
    inter: Tensor,
    up: Tensor,
    tile: Tensor,
    accumulate: bool = False,
    activations: str = "f32",
    silu: Silu = SILU,
) -> Tensor:
    """``out = down(silu(gate x) * up x)``: x [m, D], inter and up [m, W], out [m, D].

    ``weights`` holds gate, up [W, D], down [D, W] and their ``_bias`` if there are any; ``silu``
    is what lies between. 6 m D W FLOPs, one pass over the weights.
    """
    gated(x, weights, inter, up, tile, activations, silu)
    bias = weights.get("down_bias")
    return linear(inter, weights["down"], out, tile, bias, accumulate, activations)


def gated(
    x: Tensor,
    weights: Mapping[str, Any],
    out: Tensor,
    up: Tensor,
    tile: Tensor,
    activations: str = "f32",
    silu: Silu = SILU,
) -> Tensor:
    """``out = silu(gate x) * up x``; gate and up may be row blocks of the whole ones."""
    for name, into in (("gate", out), ("up", up)):
        bias = weights.get(f"{name}_bias")
        linear(x, weights[name], into, tile, bias, activations=activations)
    return activate(out, up, silu)


def activate(gate: Tensor, up: Tensor, silu: Silu) -> Tensor:
    """``gate`` = what ``silu`` makes of both, in place; ``up`` is overwritten. NaN passes.

    Allocates as much as ``gate`` takes where ``silu`` is not the plain one.
    """
    if silu == SILU:
        return functional.silu(gate, inplace=True).mul_(up)
    if silu.limit is not None:
        gate.clamp_(max=silu.limit)
        up.clamp_(-silu.limit, silu.limit)
    return gate.mul_((gate * silu.alpha).sigmoid_()).mul_(up.add_(silu.shift))
