"""Wrappers of the row kernels: the reference's signatures, over torch tensors in place.

Norms, rotations, look-ups, the router, and what surrounds attention in a layer as one call.
A row's result has the same bits for any number of rows beside it, any position and any
``threads``. What the kernels must know of weights and buffers is worked out once where ``kept``,
a ``Kept`` of this function and its rule alone, is given. ``path`` (auto, avx512, avx2, neon,
plain) forces an instruction set, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headrace.kernels.native import native_module
from headrace.kernels.native.kept import Kept, made_of
from headrace.kernels.native.matrix import native_weight
from headrace.kernels.reference.layer import AttentionRule, LayerWeights
from headrace.kernels.routed import RouterRule, Routing, Scoring
from headrace.kernels.scratch import Scratch

ROW_PATHS = ("avx512", "avx2", "neon", "plain")
"""Instruction sets of what happens to single rows; products have more."""

_FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def path_of(path: str = "auto") -> str:
    """The instruction set that single rows are computed with here."""
    name: str = native_module().rows_path(path)
    return name


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, out: Tensor, *, threads: int = 1, path: str = "auto"
) -> Tensor:
    """``out = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension; may be in place."""
    native, width = native_module(), x.shape[-1]
    if x.shape != out.shape or not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"norm: expected equal contiguous shapes, got {x.shape} and {out.shape}")
    _check_float("x", x)
    _check_float("out", out)
    native.norm(
        native.Matrix(x.data_ptr(), width), 0, x.numel() // width if width else 0, width,
        *_vector(weight, width), eps, native.Matrix(out.data_ptr(), width), threads, path,
    )  # fmt: skip
    return out


def gather_norm(
    hidden: Tensor,
    rows: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    scratch: Scratch,
    *,
    threads: int = 1,
) -> None:
    """``out`` [s, D] = norm of the rows of ``hidden`` whose numbers are in ``rows`` int64 [s]."""
    native, width = native_module(), hidden.shape[1]
    _check_index("rows", rows, len(out))
    if len(out) and not 0 <= int(rows.min()) <= int(rows.max()) < len(hidden):
        raise IndexError(f"rows: expected numbers below {len(hidden)}, got {rows.tolist()[:8]}")
    native.norm(
        _matrix("hidden", hidden, width), rows.data_ptr(), len(out), width,
        *_vector(weight, width), eps, _matrix("out", out, width), threads, "auto",
    )  # fmt: skip


def apply_rope(
    x: Tensor, cos: Tensor, sin: Tensor, temp: Tensor, *, threads: int = 1, path: str = "auto"
) -> Tensor:
    """Rotate ``x`` [rows, heads, d] in place; cos and sin [rows, d/2]. ``temp`` is not used."""
    native, (rows, heads, d) = native_module(), x.shape
    if not x.is_contiguous():
        raise ValueError(f"x: expected contiguous memory, got strides {x.stride()}")
    _check_float("x", x)
    _check_tables(cos, sin, rows, d)
    native.rope(
        native.Matrix(x.data_ptr(), heads * d), rows, heads, d, cos.data_ptr(), sin.data_ptr(),
        threads, path,
    )  # fmt: skip
    return x


def rope_tables(
    positions: Tensor, frequencies: Tensor, scale: float, *, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, d/2] at int64 ``positions`` [rows]."""
    rows, half = len(positions), len(frequencies)
    _check_index("positions", positions, rows)
    _check_float("frequencies", frequencies)
    if not frequencies.is_contiguous():
        raise ValueError(f"frequencies: expected contiguous, got stride {frequencies.stride()}")
    cos, sin = torch.empty(2, rows, half).unbind(0)
    native_module().rope_tables(
        positions.data_ptr(), rows, frequencies.data_ptr(), half, scale,
        cos.data_ptr(), sin.data_ptr(), threads,
    )  # fmt: skip
    return cos, sin


def attention_inputs(
    hidden: Tensor,
    weights: LayerWeights,
    rule: AttentionRule,
    cos: Tensor,
    sin: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scratch: Scratch,
    *,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """q, k and v of ``hidden``: norm, projections, clipping, rotation; see the reference."""
    memory, rows = scratch.rest(), cos.shape[0]
    _check_tables(cos, sin, rows, rule.head_dim)

    def described() -> tuple[Any, ...]:
        shapes = [weights[name].shape for name in ("q", "q", "k", "v")]
        widths = (shapes[0][1], *(shape[0] for shape in shapes[1:]))
        named = zip(("hidden", "q", "k", "v"), (hidden, q, k, v), widths, strict=True)
        matrices = [_matrix(name, x, width) for name, x, width in named]
        most = min(len(x) for x in (hidden, q, k, v))
        return most, _inputs(weights, rule), *matrices, _lent(memory, threads, path)

    most, inputs, x, *to, lent = made_of(kept, (hidden, weights, q, k, v, memory), described)
    _check_count("attention inputs", rows, most)
    native_module().attention_inputs(
        inputs, x, rows, cos.data_ptr(), sin.data_ptr(), *to, lent
    )  # fmt: skip


def attention_output(
    attended: Tensor,
    weights: LayerWeights,
    eps: float,
    hidden: Tensor,
    normed: Tensor,
    scratch: Scratch,
    rows: int | None = None,
    *,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """``hidden`` += the projection of ``attended``; ``normed`` = its norm; see the reference."""
    memory = scratch.rest()

    def described() -> tuple[Any, ...]:
        width, columns = weights["o"].shape
        return (
            min(len(x) for x in (attended, hidden, normed)), _output(weights, eps),
            _matrix("attended", attended, columns), _matrix("hidden", hidden, width),
            _matrix("normed", normed, width), _lent(memory, threads, path),
        )  # fmt: skip

    sources = (attended, weights, hidden, normed, memory)
    most, made, x, to, norm, lent = made_of(kept, sources, described)
    count = attended.shape[0] if rows is None else rows
    _check_count("attention output", count, most)
    native_module().attention_output(made, x, count, to, norm, lent)


def route(
    normed: Tensor,
    router: Tensor,
    rule: RouterRule,
    routing: Routing,
    scratch: Scratch,
    bias: Tensor | None = None,
    rows: int | None = None,
    *,
    kept: Kept | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """The best k experts of every row and their gates, sorted; see the reference."""
    memory = scratch.rest()

    def described() -> tuple[Any, ...]:
        experts, width = router.shape
        most, k = routing.ids.shape
        if routing.starts.shape[0] != experts + 1:
            raise ValueError(
                f"routing: expected {experts} experts, got {routing.starts.shape[0] - 1}"
            )
        tables = [table.data_ptr() for table in routing]
        weight, made = _router(router, rule, k, bias)
        x = _matrix("normed", normed, width)
        return min(len(normed), most), weight, made, x, k, tables, _lent(memory, threads, path)

    sources = (normed, router, routing, bias, memory)
    most, weight, made, x, k, tables, lent = made_of(kept, sources, described)
    count = normed.shape[0] if rows is None else rows
    _check_count("routing", count, most)
    native_module().route(weight, made, x, count, k, tables, lent)


def embed(
    tokens: Tensor,
    table: Tensor,
    first: int,
    out: Tensor,
    scratch: Scratch,
    *,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Rows of ``out`` = rows of ``table`` for the tokens in it; see the reference."""
    _check_index("tokens", tokens, len(out))
    _embed(tokens.data_ptr(), table, first, out, threads, path)


def widen_rows(stored: Tensor, out: Tensor, *, threads: int = 1, path: str = "auto") -> None:
    """``out`` [r, D] fp32 = ``stored`` [r, D]."""
    if stored.shape != out.shape:
        raise ValueError(f"rows: expected equal shapes, got {stored.shape} and {out.shape}")
    _embed(0, stored, 0, out, threads, path)


def _embed(tokens: int, table: Tensor, first: int, out: Tensor, threads: int, path: str) -> None:
    native, (count, width) = native_module(), table.shape
    if not table.is_contiguous() or table.dtype not in _FORMATS:
        raise TypeError(f"table: expected contiguous floats, got {table.dtype} {table.stride()}")
    native.embed(
        tokens, len(out), table.data_ptr(), _FORMATS[table.dtype], first, count, width,
        _matrix("out", out, width), threads, path,
    )  # fmt: skip


def _inputs(weights: LayerWeights, rule: AttentionRule) -> Any:
    native = native_module()
    q, k, v = (native_weight(weights[n], _bias(weights, n)) for n in ("q", "k", "v"))
    norms = []
    for name in ("q", "k"):
        norm, size = weights.get(f"{name}_norm"), weights[name].shape[0]
        width = size if norm is None else norm.shape[0]
        if size % width:
            raise ValueError(f"{name}_norm: expected a divisor of {size} values, got {width}")
        norms.append((*((0, "f32") if norm is None else _vector(norm, width)), width))
    return native.AttentionInputs(
        *_vector(weights["attn_norm"], weights["q"].shape[1]), q, k, v, *norms[0], *norms[1],
        rule.head_dim, rule.eps, rule.clip or 0.0,
    )  # fmt: skip


def _output(weights: LayerWeights, eps: float) -> Any:
    o = native_weight(weights["o"], _bias(weights, "o"))
    norm = _vector(weights["ffn_norm"], weights["o"].shape[0])
    return native_module().AttentionOutput(o, *norm, eps)


def _router(router: Tensor, rule: RouterRule, k: int, bias: Tensor | None) -> tuple[Any, ...]:
    experts = router.shape[0]
    rule.check(experts, k)
    if bias is not None:
        _check_float("bias", bias)
        if bias.shape != (experts,) or not bias.is_contiguous():
            raise ValueError(f"bias: expected {experts} contiguous values, got {bias.shape}")
    made = native_module().RouterRule.make(
        rule.scoring is Scoring.SIGMOID, rule.renormalise, rule.groups, rule.kept,
        rule.per_group, rule.scale, 0 if bias is None else bias.data_ptr(),
    )  # fmt: skip
    return native_weight(router, None), made


def _bias(weights: LayerWeights, name: str) -> Tensor | None:
    bias = weights.get(f"{name}_bias")
    assert bias is None or isinstance(bias, Tensor), f"{name}_bias is never quantized"
    return bias


def _vector(weight: Any, width: int) -> tuple[int, str]:
    """Address and format of a contiguous vector."""
    if weight.dtype not in _FORMATS or weight.shape != (width,) or weight.stride(0) != 1:
        raise TypeError(
            f"norm: expected {width} contiguous floats, got {weight.dtype} {tuple(weight.shape)}"
        )
    return weight.data_ptr(), _FORMATS[weight.dtype]


def _matrix(name: str, x: Tensor, width: int) -> Any:
    if x.dtype != torch.float32 or x.shape[1] != width or (width > 1 and x.stride(1) != 1):
        raise ValueError(
            f"{name}: expected fp32 rows of {width} contiguous values, got {x.dtype} "
            f"{tuple(x.shape)} with strides {x.stride()}"
        )
    return native_module().Matrix(x.data_ptr(), x.stride(0))


def _check_count(what: str, rows: int, most: int) -> None:
    if rows > most:
        raise ValueError(f"{what}: expected room for {rows} rows, got {most}")


def _lent(memory: Tensor, threads: int, path: str) -> Any:
    single = path if path in ROW_PATHS else "auto"
    return native_module().Lent(threads, path, single, memory.data_ptr(), memory.numel())


def _check_float(name: str, x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"{name}: expected fp32, got {x.dtype}")


def _check_index(name: str, x: Tensor, count: int) -> None:
    if x.dtype != torch.int64 or x.shape != (count,) or not x.is_contiguous():
        raise ValueError(f"{name}: expected {count} contiguous int64, got {x.dtype} {x.shape}")


def _check_tables(cos: Tensor, sin: Tensor, rows: int, d: int) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        _check_float(name, table)
        if table.shape != (rows, d // 2) or not table.is_contiguous() or d % 2:
            raise ValueError(f"{name}: expected contiguous {(rows, d // 2)}, got {table.shape}")
