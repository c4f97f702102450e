"""Attention in MLA's latent form, written out: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.kernels.kv import KvCache
from headrace.kernels.reference.attention import Piece


def plan_latent(
    pieces: Sequence[Piece], block: int, window: int | None = None
) -> tuple[Piece, ...]:
    """What ``attend_latent`` is told of ``pieces``; once per sweep."""
    return tuple(pieces)


def attend_latent(
    q: Tensor,
    latent: KvCache,
    plan: Sequence[Piece],
    out: Tensor,
    memory: Tensor,
    scale: float,
    window: int | None = None,
) -> None:
    """Rows of ``out`` = softmax(scale q L^T) L[:, :c], causal, for the rows of every piece.

    ``latent`` values [1, blocks, 1, block, c + r]: c columns of the latent, r of the rotated
    key. q fp32 [mu, H (c + r)] with the up-projections absorbed, out [mu, H c].
    ``memory`` is not used: torch allocates scores of all rows of a piece and all its tokens.
    DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.
    """
    stored = latent.values[0].float()  # [blocks, 1, block, c + r]
    if latent.scales is not None:
        stored = stored * latent.scales[0][..., None]
    width = stored.shape[-1]
    heads = q.shape[1] // width
    columns = out.shape[1] // heads
    for piece in plan:
        tokens = piece.position + piece.rows
        keys = stored[list(piece.blocks)].flatten(0, 2)[:tokens]  # [L, c + r]
        rows = slice(piece.row, piece.row + piece.rows)
        scores = scale * (q[rows].view(piece.rows, heads, width) @ keys.T)  # [r, H, L]
        distance = torch.arange(piece.position, tokens)[:, None, None] - torch.arange(tokens)
        hidden = (distance < 0) | (distance >= (tokens if window is None else window))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[rows] = (weights @ keys[:, :columns]).view(piece.rows, -1)
