"""Wrappers of the matrix kernels: the reference's signatures, over torch tensors in place.

Shapes and formats are checked here, once per call; nothing is copied. A row's result has the
same bits for any number of rows beside it, any position and any ``threads``. ``path`` forces
an instruction set (tests): amx, avx512, avx2, neon, plain, or auto for the best there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.native import native_module
from headrace.kernels.routed import Routed

_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def path_of(dtype: torch.dtype, path: str = "auto") -> str:
    """The instruction set that multiplies weights of ``dtype`` on this processor."""
    name: str = native_module().path_of(_FORMATS[dtype], path)
    return name


def linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    tile: Tensor,
    bias: Tensor | None = None,
    accumulate: bool = False,
    *,
    threads: int = 1,
    path: str = "auto",
) -> Tensor:
    """``out = x W^T + bias``, or ``out += ...`` when ``accumulate``; see the reference.

    ``tile`` is any contiguous scratch of ``specs.scratch.tile_elements(N, K)`` fp32 elements.
    """
    native = native_module()
    rows, w = x.shape[0], _weight(weight, bias)
    _check_matrix("x", x, (rows, weight.shape[1]))
    _check_matrix("out", out, (rows, weight.shape[0]))
    native.linear(
        x.data_ptr(), rows, x.stride(0), w, out.data_ptr(), out.stride(0), accumulate,
        _setting(tile, threads, path),
    )  # fmt: skip
    return out


def experts(
    batches: Sequence[Routed],
    first: int,
    weights: Sequence[Mapping[str, Tensor]],
    memory: Tensor,
    *,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """hidden += gate * expert(x) for experts ``first``, ``first + 1``, ... in that order."""
    native = native_module()
    loaded = [
        native.ExpertWeights(
            _weight(w["gate"], w.get("gate_bias")),
            _weight(w["up"], w.get("up_bias")),
            _weight(w["down"], w.get("down_bias")),
        )
        for w in weights
    ]
    if not weights:
        return
    hidden = weights[0]["gate"].shape[1]
    numbers = range(first, first + len(weights))
    native.experts(
        _batches(batches, numbers, hidden, slice(0, hidden)), first, loaded,
        native.Activation(1.0, 0.0, 0.0), _setting(memory, threads, path),
    )  # fmt: skip


def expert_up(
    batches: Sequence[Routed],
    number: int,
    weights: Mapping[str, Tensor],
    inter: Tensor,
    memory: Tensor,
    *,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """``inter`` [m, w] = silu(gate x) * up x for a block of w rows of gate and up."""
    native = native_module()
    width, hidden = weights["gate"].shape
    _check_matrix("inter", inter, (inter.shape[0], width))
    native.expert_up(
        _batches(batches, range(number, number + 1), hidden, inter=inter), number,
        _weight(weights["gate"], weights.get("gate_bias")),
        _weight(weights["up"], weights.get("up_bias")),
        inter.data_ptr(), inter.stride(0), native.Activation(1.0, 0.0, 0.0),
        _setting(memory, threads, path),
    )  # fmt: skip


def expert_down(
    batches: Sequence[Routed],
    number: int,
    inter: Tensor,
    weights: Mapping[str, Tensor],
    columns: slice,
    memory: Tensor,
    *,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """hidden[:, columns] += gate * down(inter) for a block of rows of down; inter [m, W]."""
    native = native_module()
    rows, width = weights["down"].shape
    _check_matrix("inter", inter, (inter.shape[0], width))
    if columns.stop - columns.start != rows:
        raise ValueError(f"columns: expected {rows} of them, got {columns}")
    native.expert_down(
        _batches(batches, range(number, number + 1), hidden=columns, inter=inter), number,
        inter.data_ptr(), inter.stride(0),
        _weight(weights["down"], weights.get("down_bias")), _setting(memory, threads, path),
    )  # fmt: skip


def _weight(weight: Tensor, bias: Tensor | None) -> Any:
    rows, columns = weight.shape
    if weight.dtype not in _FORMATS or not weight.is_contiguous():
        raise TypeError(
            f"weight: expected contiguous {', '.join(_FORMATS.values())}, "
            f"got {weight.dtype} with strides {weight.stride()}"
        )
    form = _FORMATS[weight.dtype]
    make = native_module().Weight.make
    if bias is None:
        return make(weight.data_ptr(), rows, columns, form)
    if bias.shape != (rows,) or bias.dtype not in _FORMATS or not bias.is_contiguous():
        raise TypeError(
            f"bias: expected {rows} contiguous floats, got {bias.dtype} {tuple(bias.shape)}"
        )
    return make(
        weight.data_ptr(), rows, columns, form, bias.data_ptr(), _FORMATS[bias.dtype]
    )  # fmt: skip


def _setting(scratch: Tensor, threads: int, path: str) -> Any:
    if not scratch.is_contiguous():
        raise ValueError("scratch: expected contiguous memory")
    return native_module().Setting(
        threads, path, scratch.data_ptr(), scratch.numel() * scratch.itemsize
    )  # fmt: skip


def _batches(
    batches: Sequence[Routed],
    experts: range,
    x_columns: int | None = None,
    hidden: slice | None = None,
    inter: Tensor | None = None,
) -> list[tuple[int, ...]]:
    """Addresses and strides of the micro-batches, once ``x`` has ``x_columns``, ``hidden`` the
    columns asked for, and ``inter`` a row for every visitor of the expert."""
    described: list[tuple[int, ...]] = []
    visitors = 0
    for batch in batches:
        x, to = (0, 0), (0, 0)
        if x_columns is not None:
            x = _rows_of("x", batch.x, batch.rows, x_columns)
        if hidden is not None:
            to = _rows_of("hidden", batch.hidden, batch.rows, hidden.stop, hidden.start)
        routing = batch.routing
        if routing is None:
            described.append((*x, *to, 0, 0, 0, batch.rows))
            visitors += batch.rows
            continue
        if routing.starts.shape[0] <= experts[-1] + 1:
            raise ValueError(f"routing: expected more than {experts[-1]} experts")
        tables = (routing.rows, routing.weights, routing.starts)
        described.append((*x, *to, *(t.data_ptr() for t in tables), batch.rows))
        visitors += 0 if inter is None else routing.size(experts[0])
    if inter is not None and visitors > inter.shape[0]:
        raise ValueError(f"inter: expected {visitors} rows or more, got {inter.shape[0]}")
    return described


def _rows_of(
    name: str, matrix: Tensor | None, rows: int, columns: int, first: int = 0
) -> tuple[int, int]:
    """Address of column ``first`` and row stride of at least [rows, columns]."""
    if matrix is None or matrix.shape[0] < rows or matrix.shape[1] < columns:
        shape = None if matrix is None else tuple(matrix.shape)
        raise ValueError(f"{name}: expected at least {(rows, columns)}, got {shape}")
    _check_matrix(name, matrix, (matrix.shape[0], matrix.shape[1]))
    return matrix.data_ptr() + 4 * first, matrix.stride(0)


def _check_matrix(name: str, matrix: Tensor, shape: tuple[int, int]) -> None:
    if matrix.dtype != torch.float32 or matrix.shape != shape or not _rows_contiguous(matrix):
        raise ValueError(
            f"{name}: expected fp32 {shape} with contiguous rows, got {matrix.dtype} "
            f"{tuple(matrix.shape)} with strides {matrix.stride()}"
        )


def _rows_contiguous(matrix: Tensor) -> bool:
    return matrix.stride(1) == 1 or matrix.shape[1] <= 1
