"""The model of the toy: random weights, a plain forward pass, and the arithmetic of both.

m rows, D hidden, H heads of d, W ffn_width, k experts per row.
"""

from __future__ import annotations

import numpy as np

from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page

Weights = dict[tuple[str, int | None, int | None], np.ndarray]
"""(tensor, layer, expert) -> its values."""


def plain_logits(model: ModelSpec, weights: Weights, tokens: list[int]) -> np.ndarray:
    """[len(tokens), vocab]: the whole sequence at once, no cache, pages or micro-batches."""
    hidden = weights["embed", None, None][tokens]
    for layer in range(model.layers):
        w = {name: weights[name, layer, None] for name in model.layer_tensors(layer)}
        x = norm(hidden, w["attn_norm"])
        attended = attend(model, x @ w["q"].T, x @ w["k"].T, x @ w["v"].T)
        hidden = hidden + attended @ w["o"].T
        x = norm(hidden, w["ffn_norm"])
        ids, gates = np.zeros((len(x), 1), int), np.ones((len(x), 1))
        if model.is_routed(layer):
            ids, gates = route(model, x, w)
        mixed = np.zeros_like(hidden)
        for row in range(len(x)):
            for expert, gate in zip(ids[row], gates[row], strict=True):
                names = model.expert_tensors(layer, int(expert))
                e = {name: weights[name, layer, int(expert)] for name in names}
                mixed[row] += gate * (ffn_in(x[row : row + 1], e) @ e["down"].T)[0]
        hidden = hidden + mixed
    head = weights["embed" if model.tied_embeddings else "head", None, None]
    return norm(hidden, weights["final_norm", None, None]) @ head.T


def make_weights(model: ModelSpec) -> Weights:
    """Random weights of every tensor."""
    rng = np.random.default_rng(0)
    shapes: dict[tuple[str, int | None, int | None], tuple[int, ...]] = {
        (name, None, None): shape for name, shape in model.global_tensors().items()
    }
    for layer in range(model.layers):
        shapes |= {(name, layer, None): s for name, s in model.layer_tensors(layer).items()}
        for expert in range(model.experts_in(layer)):
            tensors = model.expert_tensors(layer, expert)
            shapes |= {(name, layer, expert): s for name, s in tensors.items()}
    return {key: rng.normal(0, 0.6, shape) for key, shape in shapes.items()}


def pack(weights: Weights, page: Page) -> np.ndarray:
    """The page's slices, one after the other."""
    parts = [
        weights[s.tensor, page.layer, page.expert][s.start : s.stop].ravel() for s in page.slices
    ]
    return np.concatenate(parts)


def unpack(page: Page, flat: np.ndarray) -> dict[str, np.ndarray]:
    """Tensor name -> its rows in the page."""
    found, offset = {}, 0
    for s in page.slices:
        found[s.tensor] = flat[offset : offset + s.elements].reshape(s.shape)
        offset += s.elements
    return found


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """RMS norm over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def attend(model: ModelSpec, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The last len(q) of len(k) positions, causal; heads of a group share K and V."""
    d, group = model.head_dim, model.heads // model.kv_heads
    start = len(k) - len(q)
    seen = np.arange(len(k))[None] <= start + np.arange(len(q))[:, None]  # [m, kv]
    out = np.empty_like(q)
    for head in range(model.heads):
        mine, theirs = slice(head * d, head * d + d), head // group * d
        scores = q[:, mine] @ k[:, theirs : theirs + d].T / np.sqrt(d)
        scores = np.exp(np.where(seen, scores, -np.inf) - scores.max(-1, keepdims=True))
        out[:, mine] = scores / scores.sum(-1, keepdims=True) @ v[:, theirs : theirs + d]
    return out


def route(
    model: ModelSpec, x: np.ndarray, w: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The k best experts of each row and their softmax gates; the shared one comes last."""
    scores = x @ w["router"].T
    ids = np.argsort(-scores, axis=-1, kind="stable")[:, : model.top_k]
    best = np.take_along_axis(scores, ids, -1)
    gates = np.exp(best - best.max(-1, keepdims=True)) if len(x) else best
    gates = gates / gates.sum(-1, keepdims=True)
    if model.shared is None:
        return ids, gates
    one = np.ones((len(x), 1))
    gate = 1 / (1 + np.exp(-x @ w["shared_gate"].T)) if model.shared.gated else one
    return np.hstack((ids, one.astype(int) * model.experts)), np.hstack((gates, gate))


def ffn_in(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """SiLU(gate) * up."""
    gate = x @ w["gate"].T
    return gate / (1 + np.exp(-gate)) * (x @ w["up"].T)


def empty(*shape: int) -> np.ndarray:
    """Memory that nobody wrote: NaN."""
    return np.full(shape, np.nan)
