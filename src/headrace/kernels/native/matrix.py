"""Wrappers of the matrix kernels: the reference's signatures, over torch tensors in place.

Shapes and formats are checked here, once per call; nothing is copied. A row's result has the
same bits for any number of rows beside it, any position and any ``threads``.

``path`` is ``auto``: 16-bit and fp32 weights meet fp32 activations; integer weights meet
activations quantised to 8 bits, row by row and group by group (at most 64 columns). ``fast``
keeps 17 bits of activations where that is faster (AMX); ``exact`` widens integer weights
instead; ``bf16`` rounds activations to bf16 for weights in bf16, the others as ``auto``. The
name of a family (amx, avx512, avx512_vnni, avx_vnni, avx2, neon, plain, amx_fast,
exact_avx512, avx512_bf16, rounded_avx2, ...) forces an instruction set, for tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import gt
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.native import native_module
from headrace.kernels.native.kept import Kept, made_of
from headrace.kernels.quantized import QuantizedWeight
from headrace.kernels.routed import Routed
from headrace.kernels.silu import SILU, Silu
from headrace.kernels.turned import TurnedWeight, Weight

_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

MOST_FETCHED = 1 << 20
"""Bytes that are asked for ahead: what fits a core's own cache, and more than there is time for."""


def path_of(form: torch.dtype | str, path: str = "auto") -> str:
    """The family that multiplies weights of ``form`` (a float type, or i8, u8, u4) here."""
    stored = form if isinstance(form, str) else _FORMATS[form]
    name: str = native_module().path_of(stored, path)
    return name


def linear(
    x: Tensor,
    weight: Weight,
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
    weights: Sequence[Mapping[str, Any]],
    memory: Tensor,
    *,
    silu: Silu = SILU,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """hidden += gate * expert(x) for experts ``first``, ``first + 1``, ... in that order.

    ``kept`` spares describing the same list of ``weights``, and what they meet, again.
    """
    if not weights:
        return
    native = native_module()

    def described() -> tuple[Any, ...]:
        hidden = weights[0]["gate"].shape[1]
        numbers = range(first, first + len(weights))
        most = [min(len(x) for x in (b.x, b.hidden) if x is not None) for b in batches]
        return (
            native.ExpertList([_expert(w) for w in weights]),
            _batches(batches, numbers, hidden, slice(0, hidden)),
            most, _activation(silu), _setting(memory, threads, path),
        )  # fmt: skip

    operands = [operand for batch in batches for operand in batch[1:]]
    sources = (weights, memory, silu, *operands)
    loaded, micro_batches, most, activation, setting = made_of(kept, sources, described)
    rows = [batch.rows for batch in batches]
    if any(map(gt, rows, most)):
        raise ValueError(f"x and hidden: expected {rows} rows or more, got {most}")
    native.experts(micro_batches, rows, first, loaded, activation, setting)


def turn(weight: Tensor | QuantizedWeight, *, threads: int = 1, path: str = "auto") -> Weight:
    """``weight`` rearranged in its own memory where ``path`` reads it faster so, else as it is.

    Results keep their bits. Takes whole groups of 16 rows of whole lines of 64 bytes, with their
    scales, and for each thread memory for 16 rows.
    """
    native = native_module()
    values = weight.values if isinstance(weight, QuantizedWeight) else weight
    scales = weight.scale.data_ptr() if isinstance(weight, QuantizedWeight) else 0
    done = native.turn(values.data_ptr(), scales, _weight(weight, None), path, threads)
    return TurnedWeight(weight) if done else weight


def fetch(weight: Weight, *, threads: int = 1, kept: Kept | None = None) -> None:
    """Have helper threads ask for the first MOST_FETCHED bytes of ``weight``, into their caches,
    until they are called again; see the reference. Returns at once."""
    native_module().fetch(*made_of(kept, (weight,), lambda: _memory(weight)), threads)


def native_weight(weight: Weight, bias: Tensor | None) -> Any:
    """What the native module must know of a weight and its bias; both must outlive it."""
    return _weight(weight, bias)


def expert_up(
    batches: Sequence[Routed],
    number: int,
    weights: Mapping[str, Any],
    inter: Tensor,
    memory: Tensor,
    *,
    silu: Silu = SILU,
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
        inter.data_ptr(), inter.stride(0), _activation(silu),
        _setting(memory, threads, path),
    )  # fmt: skip


def expert_down(
    batches: Sequence[Routed],
    number: int,
    inter: Tensor,
    weights: Mapping[str, Any],
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


def _memory(weight: Weight) -> tuple[int, int]:
    """Address and bytes of what is asked for ahead."""
    if isinstance(weight, TurnedWeight):
        return _memory(weight.lies_in)
    values = weight.values if isinstance(weight, QuantizedWeight) else weight
    return values.data_ptr(), min(MOST_FETCHED, values.numel() * values.itemsize)


def _activation(silu: Silu) -> Any:
    return native_module().Activation(silu.alpha, silu.shift, silu.limit or 0.0)


def _expert(weights: Mapping[str, Any]) -> Any:
    parts = ((weights[n], weights.get(f"{n}_bias")) for n in ("gate", "up", "down"))
    return native_module().ExpertWeights(*(_weight(*part) for part in parts))


def _weight(weight: Weight, bias: Tensor | None) -> Any:
    native = native_module()
    rows, columns = weight.shape
    turned = isinstance(weight, TurnedWeight)
    if isinstance(weight, TurnedWeight):
        weight = weight.lies_in
    at, form = 0, "f32"
    if bias is not None:
        if bias.shape != (rows,) or bias.dtype not in _FORMATS or not bias.is_contiguous():
            raise TypeError(
                f"bias: expected {rows} contiguous floats, got {bias.dtype} {tuple(bias.shape)}"
            )
        at, form = bias.data_ptr(), _FORMATS[bias.dtype]
    if isinstance(weight, QuantizedWeight):
        return _quantized(weight, at, form, turned)
    if weight.dtype not in _FORMATS or not weight.is_contiguous():
        raise TypeError(
            f"weight: expected contiguous {', '.join(_FORMATS.values())}, "
            f"got {weight.dtype} with strides {weight.stride()}"
        )
    return native.Weight.make(
        weight.data_ptr(), rows, columns, _FORMATS[weight.dtype], at, form, turned
    )


def _quantized(weight: QuantizedWeight, bias: int, bias_format: str, turned: bool) -> Any:
    values, scale, zeros = weight.values, weight.scale, weight.zero_point
    form = "i8" if not weight.packed else "u4" if weight.bits == 4 else "u8"
    for name, part in (("values", values), ("scale", scale), ("zero_point", zeros)):
        if part is not None and not part.is_contiguous():
            raise TypeError(f"quantized weight: expected contiguous {name}")
    if scale.dtype not in _FORMATS or values.dtype not in (torch.int8, torch.int32):
        raise TypeError(
            f"quantized weight: expected int8 or packed int32 values and float scales, "
            f"got {values.dtype} and {scale.dtype}"
        )
    if zeros is not None and zeros.dtype != values.dtype:
        raise TypeError(f"zero_point: expected {values.dtype}, got {zeros.dtype}")
    return native_module().Weight.quantised(
        values.data_ptr(), *weight.shape, values.stride(0) * values.itemsize, form,
        scale.data_ptr(), _FORMATS[scale.dtype], 0 if zeros is None else zeros.data_ptr(),
        weight.group, bias, bias_format, turned,
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
