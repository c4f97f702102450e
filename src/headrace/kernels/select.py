"""Which implementation of the arithmetic runs: the seam between op bodies and kernels.

Op bodies call the functions of one ``Kernels`` value and know no other arithmetic. The torch
reference defines every function; the native set replaces those it has and keeps the
reference's for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from headrace.errors import UsageError
from headrace.kernels import reference
from headrace.kernels.native import attention, available, draws, matrix, rows
from headrace.kernels.native.kept import Kept
from headrace.specs.policy import ACTIVATIONS, KERNELS


@dataclass(frozen=True)
class Kernels:
    """Every function that op bodies call; signatures and contracts are the reference's.

    ``numerics`` names what decides the bits of a result: the implementation, its arithmetic
    paths, rounded activations and, for torch, its version and the number of threads.
    ``integers`` is the same for products with integer weights. No architecture calls the latent
    form of attention yet, only ``bench kernels``.
    """

    name: str
    numerics: str
    integers: str
    linear: Callable[..., Any]
    rms_norm: Callable[..., Any]
    apply_rope: Callable[..., Any]
    plan_attention: Callable[..., Any]
    append: Callable[..., Any]
    attend: Callable[..., Any]
    plan_latent: Callable[..., Any]
    attend_latent: Callable[..., Any]
    route: Callable[..., Any]
    attention_inputs: Callable[..., Any]
    attention_output: Callable[..., Any]
    gather_norm: Callable[..., Any]
    embed: Callable[..., Any]
    widen_rows: Callable[..., Any]
    rope_tables: Callable[..., Any]
    best_tokens: Callable[..., Any]
    draw_tokens: Callable[..., Any]
    rank_tokens: Callable[..., Any]
    experts: Callable[..., Any]
    expert_up: Callable[..., Any]
    expert_down: Callable[..., Any]
    fetch: Callable[..., Any]
    turn: Callable[..., Any]


def select(choice: str = "auto", threads: int = 1, activations: str = "int8") -> Kernels:
    """The kernels for ``choice``; ``auto`` takes the native ones where they were built.

    Native calls use at most ``threads`` threads; torch keeps its own setting. Integer weights
    meet ``activations`` of 8 bits, or of fp32 if they are ``f32``, and bf16 weights those of
    bf16 if they are ``bf16``, whatever the number of rows; the router's scores are never
    rounded. Raises UsageError for an unknown choice, and for ``native`` where the module is
    missing.
    """
    if activations not in ACTIVATIONS:
        raise UsageError("activations", expected=" | ".join(ACTIVATIONS), got=activations)
    if choice not in KERNELS:
        raise UsageError("kernels", expected=" | ".join(KERNELS), got=choice)
    if choice == "native" and not available():
        raise UsageError(
            "native kernels were not built",
            hint="install a C++ compiler and reinstall, or use kernels=reference",
        )
    if choice == "reference" or not available():
        return _reference(threads, activations)
    return _native(threads, activations)


_PATHS = {"int8": "auto", "f32": "exact", "bf16": "bf16"}
"""Activations -> the path of products, as ``kernels.native.matrix`` names it."""


def _met(activations: str) -> str:
    """What numerics say of products with floats that do not meet fp32."""
    return "-x_bf16" if activations == "bf16" else ""


def _reference(threads: int, activations: str) -> Kernels:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    numerics = f"torch-{torch.__version__}-{capability}-threads_{threads}{_met(activations)}"
    return Kernels(
        name="reference",
        numerics=numerics,
        integers=f"torch-x_{activations}",
        linear=partial(reference.linear, activations=activations),
        rms_norm=reference.rms_norm,
        apply_rope=reference.apply_rope,
        plan_attention=reference.plan_attention,
        append=reference.append,
        attend=reference.attend,
        plan_latent=reference.plan_latent,
        attend_latent=reference.attend_latent,
        route=reference.route,
        attention_inputs=partial(reference.attention_inputs, activations=activations),
        attention_output=partial(reference.attention_output, activations=activations),
        gather_norm=reference.gather_norm,
        embed=reference.embed,
        widen_rows=reference.widen_rows,
        rope_tables=reference.rope_tables,
        best_tokens=reference.best_tokens,
        draw_tokens=reference.draw_tokens,
        rank_tokens=reference.rank_tokens,
        experts=partial(reference.experts, activations=activations),
        expert_up=partial(reference.expert_up, activations=activations),
        expert_down=partial(reference.expert_down, activations=activations),
        fetch=reference.fetch,
        turn=reference.turn,
    )


def _native(threads: int, activations: str) -> Kernels:
    """Every function is native, and row-invariant: results depend on no thread count."""
    path = _PATHS[activations]
    products = {matrix.path_of(d, path) for d in (torch.float32, torch.bfloat16)}
    paths = "+".join(sorted({*products, attention.path_of(), rows.path_of()}))
    return replace(
        _reference(threads, activations),
        name="native",
        numerics=f"native-{paths}{_met(activations)}",
        integers=f"{matrix.path_of('i8', path)}-x_{activations}",
        linear=partial(matrix.linear, threads=threads, path=path),
        plan_attention=attention.plan_attention,
        append=partial(attention.append, threads=threads, kept=Kept()),
        attend=partial(attention.attend, threads=threads, kept=Kept()),
        plan_latent=attention.plan_latent,
        attend_latent=partial(attention.attend_latent, threads=threads),
        rms_norm=partial(rows.rms_norm, threads=threads),
        apply_rope=partial(rows.apply_rope, threads=threads),
        route=partial(rows.route, threads=threads, kept=Kept()),
        attention_inputs=partial(rows.attention_inputs, threads=threads, path=path, kept=Kept()),
        attention_output=partial(rows.attention_output, threads=threads, path=path, kept=Kept()),
        gather_norm=partial(rows.gather_norm, threads=threads),
        embed=partial(rows.embed, threads=threads),
        widen_rows=partial(rows.widen_rows, threads=threads),
        rope_tables=partial(rows.rope_tables, threads=threads),
        best_tokens=partial(draws.best_tokens, threads=threads),
        draw_tokens=partial(draws.draw_tokens, threads=threads),
        rank_tokens=partial(draws.rank_tokens, threads=threads),
        experts=partial(matrix.experts, threads=threads, path=path, kept=Kept()),
        expert_up=partial(matrix.expert_up, threads=threads, path=path),
        expert_down=partial(matrix.expert_down, threads=threads, path=path),
        fetch=partial(matrix.fetch, threads=threads, kept=Kept()),
        turn=partial(matrix.turn, threads=threads, path=path),
    )
