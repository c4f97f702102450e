"""Attention over paged K and V: decodes and prefill chunks, by groups of equal shape.

Shapes: group members g, query rows each r, KV heads KV, queries per KV head G, head width d,
tokens L in the member's blocks. The G query heads that share a KV head are folded into the
query length, so one batched product serves [g KV] x [r G, d] x [d, L].

K and V are read once per group in tiles of at most ``tile.kv_tokens`` tokens; softmax runs
online over the tiles (Milakov and Gimelshein 2018, arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.kv import KvCache, turned
from headrace.kernels.scratch import Scratch
from headrace.specs.scratch import AttentionTile

_MASKED = -1e30  # finite, so that a tile without a visible key cannot make NaN
_WASTE = 0.25  # share of padded keys that a group may hold


class Piece(NamedTuple):
    """``rows`` consecutive queries from micro-batch row ``row`` at ``position``, of a sequence
    whose KV lies in ``blocks``."""

    row: int
    rows: int
    position: int
    blocks: Sequence[int]


class AttentionGroup(NamedTuple):
    """Pieces that are multiplied together.

    ``rows`` [g r] query rows; ``tables`` [g, blocks]; ``limits`` [g, r] the last visible key of
    each query, counted from the table's first token; ``stale`` the places in [g L] that no
    token was written to; ``lowest`` the smallest limit. Only a group of one member may exceed
    the tile; it is then read in several tiles.
    """

    rows: Tensor
    tables: Tensor
    limits: Tensor
    stale: Tensor
    lowest: int


def attend(
    q: Tensor,
    kv: KvCache,
    groups: Sequence[AttentionGroup],
    out: Tensor,
    memory: Tensor,
    tile: AttentionTile,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Rows of ``out`` = softmax(q K^T / sqrt(d)) V for every query row in ``groups``.

    q and out [mu, KV G d] fp32; ``memory`` is the scratch buffer. ``window`` hides keys at
    distance ``window`` and more. ``sinks`` [KV G]: a logit per query head that takes part in
    the softmax and has no value. 4 H d FLOPs per query and key, one read of K and V per group.
    """
    for group in groups:
        _attend_group(q, kv, group, out, Scratch(memory), tile, window, sinks)


def _attend_group(
    q: Tensor,
    kv: KvCache,
    group: AttentionGroup,
    out: Tensor,
    scratch: Scratch,
    tile: AttentionTile,
    window: int | None,
    sinks: Tensor | None,
) -> None:
    (g, r), (heads, block, d) = group.limits.shape, kv.values.shape[2:]
    flat = scratch.take(g * r, q.shape[1])
    queries = _fold(q, group, flat, heads, d, scratch)  # [g KV, r G, d]
    state = _Partial.new(queries, scratch)
    for start, stop in _tiles(group, block, tile):
        inner = Scratch(scratch.rest())
        part = _Partial.new(queries, inner) if start else state
        _attend_tile(queries, kv, group, start, stop, part, inner, window)
        if start:
            state.merge(part)
    if sinks is not None:
        state.mass.add_((_sinks_of(sinks, g, heads, r) - state.top).exp_())
    state.result.div_(state.mass)
    if r > 1:  # [g KV, r G, d] -> [g r, KV G d]
        result = state.result.view(g, heads, r, -1, d).permute(0, 2, 1, 3, 4)
        flat.view(g, r, heads, -1, d).copy_(result)
        out.index_copy_(0, group.rows, flat)
    else:
        out.index_copy_(0, group.rows, state.result.view(g, -1))


def _sinks_of(sinks: Tensor, g: int, heads: int, r: int) -> Tensor:
    """The sink of every folded query row: [g KV, r G, 1]."""
    split = sinks.view(1, heads, 1, -1).expand(g, heads, r, -1)
    return split.reshape(g * heads, -1, 1)


class _Partial(NamedTuple):
    """Softmax over some of the keys: largest score, sum of exp, unnormalised weighted values."""

    top: Tensor  # [g KV, r G, 1]
    mass: Tensor  # [g KV, r G, 1]
    result: Tensor  # [g KV, r G, d]

    @classmethod
    def new(cls, queries: Tensor, scratch: Scratch) -> _Partial:
        batch, rows, d = queries.shape
        return cls(*(scratch.take(batch, rows, width) for width in (1, 1, d)))

    def merge(self, other: _Partial) -> None:
        """Take the other part's keys in; destroys ``other``."""
        top = torch.maximum(self.top, other.top)
        mine, theirs = self.top.sub_(top).exp_(), other.top.sub_(top).exp_()
        self.mass.mul_(mine).add_(other.mass.mul_(theirs))
        self.result.mul_(mine).add_(other.result.mul_(theirs))
        self.top.copy_(top)


def _fold(
    q: Tensor, group: AttentionGroup, flat: Tensor, heads: int, d: int, scratch: Scratch
) -> Tensor:
    """Scaled queries of the group, heads that share K and V side by side: [g KV, r G, d]."""
    g, r = group.limits.shape
    torch.index_select(q, 0, group.rows, out=flat).mul_(d**-0.5)
    if r == 1:
        return flat.view(g * heads, -1, d)
    folded = scratch.take(g, heads, r, q.shape[1] // (heads * d), d)
    folded.copy_(flat.view(g, r, heads, -1, d).permute(0, 2, 1, 3, 4))
    return folded.view(g * heads, -1, d)


def _tiles(group: AttentionGroup, block: int, tile: AttentionTile) -> Iterator[tuple[int, int]]:
    """Ranges of blocks; all of them at once unless a single member exceeds the tile."""
    (g, r), blocks = group.limits.shape, group.tables.shape[1]
    tokens = min(tile.kv_tokens // g, tile.pairs // (g * r))
    step = max(1, tokens // block)
    for start in range(0, blocks, step):
        yield start, min(start + step, blocks)


def _attend_tile(
    queries: Tensor,
    kv: KvCache,
    group: AttentionGroup,
    start: int,
    stop: int,
    part: _Partial,
    scratch: Scratch,
    window: int | None,
) -> None:
    """Fill ``part`` from the keys in blocks start .. stop of every member."""
    g, (heads, block, d) = group.tables.shape[0], kv.values.shape[2:]
    tokens = (stop - start) * block
    stored = scratch.take(g * tokens, heads * d, dtype=kv.values.dtype)
    scales = None if kv.scales is None else scratch.take(g * tokens, heads)
    wide = scratch.take(g * heads, tokens, d)
    scores = scratch.take(*queries.shape[:2], tokens)
    _gather(kv, 0, group, start, stop, stored, scales, wide)
    torch.bmm(queries, wide.transpose(1, 2), out=scores)
    _mask(scores, group, start * block, heads, window, scratch)
    torch.amax(scores, -1, keepdim=True, out=part.top)
    scores.sub_(part.top).exp_()
    torch.sum(scores, -1, keepdim=True, out=part.mass)
    _gather(kv, 1, group, start, stop, stored, scales, wide)
    torch.bmm(scores, wide, out=part.result)


def _gather(
    kv: KvCache,
    half: int,
    group: AttentionGroup,
    start: int,
    stop: int,
    stored: Tensor,
    scales: Tensor | None,
    wide: Tensor,
) -> None:
    """K or V of the blocks, upcast: ``wide`` [g KV, L, d]. Places never written become 0."""
    (g, blocks), (heads, block, d) = group.tables.shape, kv.values.shape[2:]
    table = group.tables[:, start:stop].reshape(-1)
    tiled = wide.view(g, heads, -1, block, d)
    for half_of, out in ((kv.values, stored), (kv.scales, scales)):
        if half_of is None or out is None:
            continue
        torch.index_select(half_of[half].flatten(1), 0, table, out=out.view(table.numel(), -1))
        split = out.view(table.numel(), heads, block, -1)  # [g blocks, KV, block, d or 1]
        if half == 0 and out is stored:
            split = turned(split)
        if stop == blocks:
            stale = group.stale - start * block
            split.transpose(1, 2)[stale // block, stale % block] = 0
        split = split.view(g, -1, *split.shape[1:]).transpose(1, 2)  # [g, KV, blocks, block, ..]
        tiled.copy_(split) if out is stored else tiled.mul_(split)


def _mask(
    scores: Tensor,
    group: AttentionGroup,
    first: int,
    heads: int,
    window: int | None,
    scratch: Scratch,
) -> None:
    """Hide keys after each query, and those that its window has left."""
    (g, r), tokens = group.limits.shape, scores.shape[-1]
    if window is None and group.lowest - first >= tokens - 1:
        return
    keys = torch.arange(first, first + tokens, dtype=torch.int32)
    limits = group.limits.view(g, 1, r, 1, 1)
    hidden = scratch.take(g, 1, r, 1, tokens, dtype=torch.bool)
    torch.gt(keys, limits, out=hidden)
    if window is not None:
        left = scratch.take(*hidden.shape, dtype=torch.bool)
        hidden.logical_or_(torch.le(keys, limits - window, out=left))
    scores.view(g, heads, r, -1, tokens).masked_fill_(hidden, _MASKED)


def plan_attention(
    pieces: Sequence[Piece],
    tile: AttentionTile,
    block: int,
    window: int | None,
    causal: bool = True,
) -> tuple[AttentionGroup, ...]:
    """Group ``pieces`` by query rows and near-equal KV length. Once per sweep, for all layers.

    Not ``causal``: every row sees all keys of its piece; then there is no window.
    """
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window: expected at least 1, and causal attention, got {window}")
    cut = [
        _Cut.of(part, block, window, None if causal else piece.position + piece.rows)
        for piece in pieces
        for part in _cut(piece, tile.query_rows)
    ]
    groups: list[AttentionGroup] = []
    members: list[_Cut] = []
    padding = 0  # blocks that members lack to be as long as the last one
    for piece in sorted(cut, key=lambda c: (c.piece.rows, c.blocks)):
        if members:
            padding += len(members) * (piece.blocks - members[-1].blocks)
        if members and not _joins(piece, members, padding, tile, block):
            groups.append(_group(members, block))
            members, padding = [], 0
        members.append(piece)
    return (*groups, _group(members, block)) if members else ()


class _Cut(NamedTuple):
    """A piece, the blocks first .. stop that its queries see, and the number of keys that all of
    them see (None: each sees those up to its own)."""

    piece: Piece
    first: int
    stop: int
    all_see: int | None

    @classmethod
    def of(cls, piece: Piece, block: int, window: int | None, all_see: int | None) -> _Cut:
        first = 0 if window is None else max(0, piece.position - window + 1) // block
        end = piece.position + piece.rows if all_see is None else all_see
        return cls(piece, first, -(-end // block), all_see)

    @property
    def blocks(self) -> int:
        return self.stop - self.first


def _cut(piece: Piece, query_rows: int) -> Iterator[Piece]:
    for start in range(0, piece.rows, query_rows):
        rows = min(query_rows, piece.rows - start)
        yield Piece(piece.row + start, rows, piece.position + start, piece.blocks)


def _joins(cut: _Cut, members: list[_Cut], padding: int, tile: AttentionTile, block: int) -> bool:
    rows, count, tokens = cut.piece.rows, len(members) + 1, cut.blocks * block
    return (
        rows == members[-1].piece.rows
        and count * tokens <= tile.kv_tokens
        and count * rows <= tile.rows
        and count * rows * tokens <= tile.pairs
        and padding <= _WASTE * count * cut.blocks
    )


def _group(members: list[_Cut], block: int) -> AttentionGroup:
    longest = members[-1].blocks
    rows: list[int] = []
    stale: list[int] = []
    tables, limits = [], []
    for place, (piece, first, stop, all_see) in enumerate(members):
        begin = piece.position - first * block
        end = begin + piece.rows if all_see is None else all_see
        rows.extend(range(piece.row, piece.row + piece.rows))
        tables.append([*piece.blocks[first:stop], *[0] * (longest - stop + first)])
        limits.append(list(range(begin, end)) if all_see is None else [end - 1] * piece.rows)
        stale.extend(range(place * longest * block + end, (place + 1) * longest * block))
    return AttentionGroup(
        rows=torch.tensor(rows),
        tables=torch.tensor(tables),
        limits=torch.tensor(limits, dtype=torch.int32),
        stale=torch.tensor(stale, dtype=torch.int64),
        lowest=min(limit[0] for limit in limits),
    )
