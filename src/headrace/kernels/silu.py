"""The gated activation between an expert's first products and its last."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Silu:
    """``g sigmoid(alpha g) (u + shift)`` for products g of gate and u of up.

    With a ``limit``, g is clamped to at most that and u to +- that before. gpt-oss has
    ``Silu(alpha=1.702, shift=1.0, limit=7.0)``; no model that runs here uses another than the
    plain one yet. Raises ValueError for what is not finite, and an ``alpha`` or ``limit`` that is
    not above 0.
    """

    alpha: float = 1.0
    shift: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        positive = (self.alpha, *(() if self.limit is None else (self.limit,)))
        if not all(math.isfinite(x) and x > 0 for x in positive) or not math.isfinite(self.shift):
            raise ValueError(
                f"silu: expected finite values, alpha and limit (or None) above 0, got {self}"
            )


SILU = Silu()
"""The plain one: ``silu(g) u``."""
