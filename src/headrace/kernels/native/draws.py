"""Wrappers of the sampling kernels: one pass over the logits, no sort of the vocabulary.

Contracts as the reference's. A row's result depends neither on other rows nor on ``threads``;
weights below e^-87 of the largest count as 0. ``path`` forces an instruction set, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.draws import Best, Draw, Rank, Ranked
from headrace.kernels.native import native_module


def best_tokens(logits: Tensor, *, threads: int = 1, path: str = "auto") -> list[Best]:
    """The first of the largest logits of each row [S, V]."""
    rows, vocab = logits.shape
    found = native_module().best_tokens(_matrix(logits), rows, vocab, threads, path)
    return [Best(*row) for row in found]


def draw_tokens(
    logits: Tensor, draws: Sequence[Draw], *, threads: int = 1, path: str = "auto"
) -> list[int]:
    """One token for each of ``draws``, from the rows of ``logits`` [S, V] that they name."""
    matrix, vocab = _matrix(logits), logits.shape[1]
    _check_rows(draws, logits)
    tokens: list[int] = native_module().draw_tokens(matrix, vocab, list(draws), threads, path)
    return tokens


def rank_tokens(
    logits: Tensor, ranks: Sequence[Rank], *, threads: int = 1, path: str = "auto"
) -> list[Ranked]:
    """log sum exp, and the likeliest tokens, of the rows that ``ranks`` name."""
    matrix, vocab = _matrix(logits), logits.shape[1]
    _check_rows(ranks, logits)
    found = native_module().rank_tokens(matrix, vocab, list(ranks), threads, path)
    return [Ranked(*row) for row in found]


def _matrix(logits: Tensor) -> Any:
    if logits.dtype != torch.float32 or logits.ndim != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"logits: expected fp32 [S, V] with contiguous rows, got {logits.dtype} "
            f"{tuple(logits.shape)} with strides {logits.stride()}"
        )
    return native_module().Matrix(logits.data_ptr(), logits.stride(0))


def _check_rows(asked: Sequence[Draw] | Sequence[Rank], logits: Tensor) -> None:
    for each in asked:
        if not 0 <= each.row < len(logits):
            raise ValueError(f"row: expected 0 to {len(logits) - 1}, got {each.row}")
