"""Wrappers of attention: the reference's signatures, over torch tensors in place.

A query row's result has the same bits for any rows beside it, any position in the call, any
``threads``, any cut of its prompt into chunks and any block table: keys are met in tiles and
splits at fixed absolute positions, and K and V are used as the cache holds them.

``path`` is ``auto``, or avx512, avx2, neon or plain, to force an instruction set in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.kernels.kv import KvCache
from headrace.kernels.native import native_module
from headrace.kernels.native.kept import Kept, made_of
from headrace.kernels.reference import Piece
from headrace.specs.scratch import AttentionTile

_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "i8"}


class AttentionPlan(NamedTuple):
    """Pieces of one micro-batch: ``pieces`` int64 [n, 4] of first row, rows, position and first
    entry in ``tables``, int32. ``rows`` and ``blocks`` are what q and the cache must have."""

    pieces: Tensor
    tables: Tensor
    block: int
    causal: bool
    rows: int
    blocks: int


def path_of(path: str = "auto") -> str:
    """The instruction set that attention uses here."""
    name: str = native_module().attention_path(path)
    return name


def plan_attention(
    pieces: Sequence[Piece],
    tile: AttentionTile | None,
    block: int,
    window: int | None,
    causal: bool = True,
) -> AttentionPlan:
    """Describe ``pieces``; ``tile`` and ``window`` are the reference's. Once per sweep.

    Not ``causal``: every row sees all of its piece. Raises ValueError for a piece whose blocks
    hold fewer tokens than it has.
    """
    _check_window(window, causal)
    described: list[tuple[int, ...]] = []
    tables: list[int] = []
    for piece in pieces:
        needed = -(-(piece.position + piece.rows) // block)
        if len(piece.blocks) < needed:
            raise ValueError(f"blocks: expected {needed} for {piece}, got {len(piece.blocks)}")
        described.append((piece.row, piece.rows, piece.position, len(tables)))
        tables.extend(piece.blocks[:needed])
    if tables and min(tables) < 0:
        raise ValueError("blocks: expected numbers from 0 on")
    return AttentionPlan(
        torch.tensor(described, dtype=torch.int64).view(-1, 4),
        torch.tensor(tables, dtype=torch.int32),
        block,
        causal,
        rows=max((p.row + p.rows for p in pieces), default=0),
        blocks=max(tables, default=-1) + 1,
    )


def attend(
    q: Tensor,
    kv: KvCache,
    plan: AttentionPlan,
    out: Tensor,
    memory: Tensor,
    tile: AttentionTile | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    *,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Rows of ``out`` = softmax(q K^T / sqrt(d)) V for every query row in ``plan``.

    q and out [mu, KV G d] fp32 with contiguous rows. ``sinks`` fp32 [KV G]: a logit per query
    head that takes weight and gives no value. Any contiguous ``memory`` will do; a long sequence
    alone is shared among threads as far as it suffices.
    """

    def described() -> tuple[Any, ...]:
        _, blocks, heads, block, d = kv.values.shape
        group = q.shape[1] // (heads * d)
        for name, x in (("q", q), ("out", out)):
            _check_rows(name, x, 0, heads * group * d)
        call = native_module().Attention.make(
            _described(kv, halves=2), q.data_ptr(), q.stride(0), out.data_ptr(), out.stride(0),
            group, d, d,
        )  # fmt: skip
        return call, min(len(q), len(out)), blocks, block, d**-0.5, _sinks(sinks, heads * group)

    sources = (q, kv, out, sinks)
    call, rows, blocks, block, scale, sinks_at = made_of(kept, sources, described)
    _check_plan(plan, rows, blocks, block)
    _run(call, plan, scale, window, sinks_at, memory, threads, path)


def plan_latent(pieces: Sequence[Piece], block: int, window: int | None = None) -> AttentionPlan:
    """Describe ``pieces`` for ``attend_latent``; as ``plan_attention``."""
    return plan_attention(pieces, None, block, window)


def attend_latent(
    q: Tensor,
    latent: KvCache,
    plan: AttentionPlan,
    out: Tensor,
    memory: Tensor,
    scale: float,
    window: int | None = None,
    *,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Rows of ``out`` = softmax(scale q L^T) L[:, :c], the latent form of MLA.

    ``latent`` values [1, blocks, 1, block, c + r]: c columns of the latent, r of the rotated
    key. q fp32 [mu, H (c + r)] with the up-projections absorbed, out [mu, H c].
    DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.
    """
    width = latent.values.shape[4]
    heads = q.shape[1] // width
    columns = out.shape[1] // heads
    _check_rows("q", q, 0, heads * width)
    _check_rows("out", out, 0, heads * columns)
    _check_plan(plan, min(len(q), len(out)), latent.values.shape[1], latent.values.shape[3])
    if latent.values.shape[2] != 1 or columns > width:
        raise ValueError(f"latent: expected one head of {columns} columns or more, got {width}")
    call = native_module().Attention.make(
        _described(latent, halves=1), q.data_ptr(), q.stride(0), out.data_ptr(), out.stride(0),
        heads, width, columns,
    )  # fmt: skip
    _run(call, plan, scale, window, 0, memory, threads, path)


def append(
    k: Tensor,
    v: Tensor | None,
    kv: KvCache,
    slots: Tensor,
    temp: Tensor | None = None,
    *,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Write rows k and v [r, KV d] to the places ``slots`` (int64 [r], in tokens) of the cache,
    rounded to its format; see the reference. v None: a latent cache, of one half. ``temp`` is
    not used. ``kept`` spares describing the same cache again."""

    def described() -> tuple[Any, ...]:
        halves, blocks, heads, block, d = kv.values.shape
        if halves != (1 if v is None else 2):
            raise ValueError(f"kv: expected values for each of {halves} halves")
        _check_rows("k", k, 0, heads * d)
        most, at, stride = len(k), 0, 0
        if v is not None:
            _check_rows("v", v, 0, heads * d)
            most, at, stride = min(most, len(v)), v.data_ptr(), v.stride(0)
        cache = _described(kv, halves)
        return most, cache, (k.data_ptr(), k.stride(0), at, stride), d, blocks * block

    most, cache, operands, d, capacity = made_of(kept, (k, v, kv), described)
    rows = slots.shape[0]
    if slots.dtype != torch.int64 or not slots.is_contiguous():
        raise ValueError(f"slots: expected contiguous int64, got {slots.dtype}")
    if rows > most:
        raise ValueError(f"k and v: expected {rows} rows or more, got {most}")
    native_module().append(
        cache, *operands, rows, d, 0 if v is None else d, slots.data_ptr(), capacity, threads, path
    )


def _run(
    call: Any, plan: AttentionPlan, scale: float, window: int | None, sinks: int,
    memory: Tensor, threads: int, path: str,
) -> None:  # fmt: skip
    _check_window(window, plan.causal)
    if not memory.is_contiguous():
        raise ValueError("memory: expected contiguous")
    native_module().attend(
        call, plan.pieces.data_ptr(), plan.pieces.shape[0], plan.tables.data_ptr(), scale,
        window or 0, plan.causal, sinks, memory.data_ptr(), memory.numel() * memory.itemsize,
        threads, path,
    )  # fmt: skip


def _check_plan(plan: AttentionPlan, rows: int, blocks: int, block: int) -> None:
    """Whether what the plan speaks of is there."""
    if plan.block != block or plan.blocks > blocks:
        raise ValueError(
            f"kv: expected {plan.blocks} blocks or more of {plan.block}, got {blocks} of {block}"
        )
    if plan.rows > rows:
        raise ValueError(f"q and out: expected {plan.rows} rows or more, got {rows}")


def _described(kv: KvCache, halves: int) -> Any:
    if kv.values.shape[0] != halves:
        raise ValueError(f"kv: expected {halves} halves, got {tuple(kv.values.shape)}")
    values, scales = kv
    if values.dtype not in _FORMATS or not values.is_contiguous():
        raise TypeError(
            f"kv: expected contiguous {', '.join(_FORMATS.values())}, got {values.dtype} "
            f"with strides {values.stride()}"
        )
    if (scales is None) == (values.dtype == torch.int8):
        raise TypeError(f"kv: expected scales with int8 and only there, got {values.dtype}")
    if scales is not None and (
        scales.shape != values.shape[:4]
        or scales.dtype != torch.float32
        or not scales.is_contiguous()
    ):
        raise TypeError(
            f"scales: expected contiguous fp32 {tuple(values.shape[:4])}, got {scales.dtype} "
            f"{tuple(scales.shape)}"
        )
    halves, _, heads, block, d = values.shape
    at = [values[i].data_ptr() for i in (0, halves - 1)]
    scales_at = [0, 0] if scales is None else [scales[i].data_ptr() for i in (0, halves - 1)]
    return native_module().KvCache.make(
        _FORMATS[values.dtype], *at, *scales_at, block, heads, d
    )  # fmt: skip


def _sinks(sinks: Tensor | None, heads: int) -> int:
    if sinks is None:
        return 0
    if sinks.shape != (heads,) or sinks.dtype != torch.float32 or not sinks.is_contiguous():
        raise TypeError(
            f"sinks: expected {heads} contiguous fp32, got {sinks.dtype} {tuple(sinks.shape)}"
        )
    return sinks.data_ptr()


def _check_window(window: int | None, causal: bool) -> None:
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window: expected at least 1, and causal attention, got {window}")


def _check_rows(name: str, matrix: Tensor, rows: int, columns: int) -> None:
    if (
        matrix.dtype != torch.float32
        or matrix.shape[0] < rows
        or matrix.shape[1] != columns
        or (matrix.stride(1) != 1 and columns > 1)
    ):
        raise ValueError(
            f"{name}: expected fp32, {rows} rows or more of {columns} contiguous columns, got "
            f"{matrix.dtype} {tuple(matrix.shape)} with strides {matrix.stride()}"
        )
