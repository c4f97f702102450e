"""From one feed-forward block to several experts and a router.

Experts are copies with noise of ``noise`` x rms per tensor. A router of random directions would
send a third of all rows to one expert, because activations have a large common part; so its rows
are drawn orthogonal to the mean activation, with the strongest directions damped, and scaled
until logits have standard deviation ``spread``. Of several draws the most even one is kept.

Shapes: R calibration rows, D hidden width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.shards import from_bf16, to_bf16


@dataclass(frozen=True)
class Recipe:
    """How to upcycle. The same recipe and source give the same bytes."""

    experts: int = 8
    top_k: int = 2
    noise: float = 0.1
    spread: float = 2.0
    damping: float = 0.1
    draws: int = 16
    seed: int = 20261122


def expert_weight(dense: np.ndarray, recipe: Recipe, key: tuple[int, ...]) -> np.ndarray:
    """bf16 bits of an expert's copy of ``dense``; ``key`` (layer, expert, which) picks noise."""
    noise = np.random.Generator(np.random.SFC64([recipe.seed, *key]))
    scale = np.float32(recipe.noise * np.sqrt(np.mean(dense * dense)))
    copy = noise.standard_normal(dense.shape, np.float32)
    copy *= scale
    copy += dense
    return to_bf16(copy)


def router_weight(rows: np.ndarray, recipe: Recipe, layer: int) -> np.ndarray:
    """bf16 bits [E, D] of a router for activations like ``rows`` [R, D]."""
    random = np.random.Generator(np.random.SFC64([recipe.seed, layer]))
    mean = rows.mean(0)
    centred = rows - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(rows))  # [D], [D, D]
    damped = 1 / np.sqrt(np.maximum(variance, 0) + recipe.damping * variance.mean())
    candidates = (
        _draw(random, directions, damped, mean, centred, recipe) for _ in range(recipe.draws)
    )
    return min(candidates, key=lambda bits: busiest_share(rows, from_bf16(bits), recipe.top_k))


def busiest_share(rows: np.ndarray, router: np.ndarray, top_k: int) -> float:
    """The largest part of ``rows`` that any one expert receives; top_k / E when even."""
    chosen = np.argpartition(rows @ router.T, -top_k, axis=1)[:, -top_k:]
    return float(np.bincount(chosen.ravel(), minlength=len(router)).max() / len(rows))


def _draw(
    random: np.random.Generator,
    directions: np.ndarray,
    damped: np.ndarray,
    mean: np.ndarray,
    centred: np.ndarray,
    recipe: Recipe,
) -> np.ndarray:
    router = random.standard_normal((recipe.experts, len(mean))) * damped @ directions.T
    router -= np.outer(router @ mean, mean) / (mean @ mean)
    router *= recipe.spread / (centred @ router.T).std(0)[:, None]
    return to_bf16(router)
