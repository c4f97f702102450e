"""Which implementation of the arithmetic runs: the seam between op bodies and kernels.

Op bodies call the functions of one ``Kernels`` value and know no other arithmetic. The torch
reference defines every function; the native set replaces those it has and keeps the
reference's for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from headrace.errors import UsageError
from headrace.kernels import reference
from headrace.kernels.native import available

Choice = Literal["auto", "native", "reference"]
CHOICES: tuple[Choice, ...] = ("auto", "native", "reference")


@dataclass(frozen=True)
class Kernels:
    """Every function that op bodies call; signatures and contracts are the reference's.

    ``numerics`` names what decides the bits of a result: the implementation, its arithmetic
    path and, where results depend on it, the number of threads.
    """

    name: str
    numerics: str
    linear: Callable[..., Any]
    rms_norm: Callable[..., Any]
    apply_rope: Callable[..., Any]
    attend: Callable[..., Any]
    route: Callable[..., Any]
    expert: Callable[..., Any]
    gated: Callable[..., Any]


def select(choice: str = "auto", threads: int = 1) -> Kernels:
    """The kernels for ``choice``; ``auto`` takes the native ones where they were built.

    Native calls use at most ``threads`` threads; torch keeps its own setting. Raises UsageError
    for an unknown choice, and for ``native`` where the module is missing.
    """
    if choice not in CHOICES:
        raise UsageError("kernels", expected=" | ".join(CHOICES), got=choice)
    if choice == "native" and not available():
        raise UsageError(
            "native kernels were not built",
            hint="install a C++ compiler and reinstall, or use kernels=reference",
        )
    if choice == "reference" or not available():
        return _reference(threads)
    return _native(threads)


def _reference(threads: int) -> Kernels:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return Kernels(
        name="reference",
        numerics=f"torch-{torch.__version__}-{capability}-threads_{threads}",
        linear=reference.linear,
        rms_norm=reference.rms_norm,
        apply_rope=reference.apply_rope,
        attend=reference.attend,
        route=reference.route,
        expert=reference.expert,
        gated=reference.gated,
    )


def _native(threads: int) -> Kernels:
    return _reference(threads)  # replaced one by one as native functions arrive
