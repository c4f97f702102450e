"""From one feed-forward block to several experts and a router.

Experts are copies with noise of ``noise`` x rms per tensor. A router of random directions would
send a third of all rows to one expert, because activations have a large common part; so its rows
are drawn orthogonal to the mean activation, among directions that vary within a text rather than
from text to text, and scaled until logits have standard deviation ``spread``. Of several draws the
most even one is kept.

Shapes: R calibration rows, D hidden width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.shards import from_bf16, to_bf16

PIECE = 128  # rows that count as one text


@dataclass(frozen=True)
class Recipe:
    """How to upcycle. The same recipe and source give the same bytes."""

    experts: int = 8
    top_k: int = 2
    noise: float = 0.1
    spread: float = 2.0
    damping: float = 0.2
    dims: int = 32
    draws: int = 8
    seed: int = 2


def expert_weight(dense: np.ndarray, recipe: Recipe, key: tuple[int, ...]) -> np.ndarray:
    """bf16 bits of an expert's copy of ``dense``; ``key`` (layer, expert, which) picks noise."""
    noise = np.random.Generator(np.random.SFC64([recipe.seed, *key]))
    scale = np.float32(recipe.noise * np.sqrt(np.mean(dense * dense)))
    copy = noise.standard_normal(dense.shape, np.float32)
    copy *= scale
    copy += dense
    return to_bf16(copy)


def router_weight(rows: np.ndarray, recipe: Recipe, layer: int) -> np.ndarray:
    """bf16 bits [E, D] of a router for activations like ``rows`` [R, D], in reading order."""
    random = np.random.Generator(np.random.SFC64([recipe.seed, layer]))
    mean = rows.mean(0)
    centred = rows - mean
    lively = lively_directions(centred, recipe)  # [D, dims]
    candidates = (_draw(random, lively, mean, centred, recipe) for _ in range(recipe.draws))
    pieces = _pieces(rows)

    def unevenness(bits: np.ndarray) -> float:
        router = from_bf16(bits)
        return float(np.mean([busiest_share(piece, router, recipe.top_k) for piece in pieces]))

    return min(candidates, key=unevenness)


def lively_directions(centred: np.ndarray, recipe: Recipe) -> np.ndarray:
    """[D, dims]: along these, rows of one text differ most compared with texts among each other.

    A discriminant analysis turned around. A direction that tells texts apart would send most of a
    text to the same experts, however even it is over all texts together.
    """
    width = centred.shape[1]
    total = centred.T @ centred / len(centred)
    means = np.array([piece.mean(0) for piece in _pieces(centred)])
    between = means.T @ means / len(means) + recipe.damping * total
    between += 1e-3 * np.trace(total) / width * np.eye(width)
    scale, axes = np.linalg.eigh(between)
    whitened = axes / np.sqrt(scale)
    ratio, directions = np.linalg.eigh(whitened.T @ total @ whitened)  # ascending
    lively = whitened @ directions[:, -recipe.dims :] / np.sqrt(ratio[-recipe.dims :])
    signs = np.sign(lively[np.abs(lively).argmax(0), np.arange(recipe.dims)])
    return lively * signs  # an eigenvector's sign is the library's choice; this one is ours


def busiest_share(rows: np.ndarray, router: np.ndarray, top_k: int) -> float:
    """The largest part of ``rows`` that any one expert receives; top_k / E when even."""
    chosen = np.argpartition(rows @ router.T, -top_k, axis=1)[:, -top_k:]
    return float(np.bincount(chosen.ravel(), minlength=len(router)).max() / len(rows))


def _draw(
    random: np.random.Generator,
    lively: np.ndarray,
    mean: np.ndarray,
    centred: np.ndarray,
    recipe: Recipe,
) -> np.ndarray:
    mixture, _ = np.linalg.qr(random.standard_normal((recipe.dims, recipe.experts)))
    router = (lively @ mixture).T
    router -= np.outer(router @ mean, mean) / (mean @ mean)
    router *= recipe.spread / (centred @ router.T).std(0)[:, None]
    return to_bf16(router)


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[at : at + PIECE] for at in range(0, len(rows) - PIECE + 1, PIECE)]
