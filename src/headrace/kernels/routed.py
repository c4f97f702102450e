"""Which rows go to which expert, and the rows that experts work on, as kernels are given them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class Scoring(StrEnum):
    """How a router's products become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class RouterRule:
    """How rows choose their experts.

    The k best scores win and are the gates: divided by their sum when ``renormalise``, times
    ``scale``. Experts lie in ``groups`` equal groups, of which the ``kept`` best take part; a
    group is as good as the sum of its ``per_group`` best (DeepSeek-AI 2024, arXiv 2412.19437,
    section 2.1.2). Of equal scores the lower number wins.
    """

    scoring: Scoring = Scoring.SOFTMAX
    renormalise: bool = False
    groups: int = 1
    kept: int = 1
    per_group: int = 1
    scale: float = 1.0

    def check(self, experts: int, top_k: int) -> None:
        """Raise ValueError for a rule that cannot route to ``top_k`` of ``experts``."""
        size = experts // self.groups if self.groups > 0 else 0
        if (
            size * self.groups != experts
            or not 1 <= self.kept <= self.groups
            or not 1 <= self.per_group <= size
            or not 1 <= top_k <= self.kept * size
        ):
            raise ValueError(
                f"router: expected equal groups of {experts} experts, {top_k} of them within "
                f"the groups kept, got {self}"
            )


class Routing(NamedTuple):
    """Who goes where, for one micro-batch, as tensors over one buffer.

    ``ids`` int32 and ``gates`` fp32 are [mu, k] in row order. ``rows`` int32 and ``weights``
    fp32, [mu k], hold the same sorted by expert: those of expert e are at
    ``starts[e]:starts[e + 1]`` (int64 [E + 1]), rows ascending.
    """

    ids: Tensor
    gates: Tensor
    rows: Tensor
    weights: Tensor
    starts: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Rows [m] and gate weights [m] of one expert."""
        start, stop = self.starts[expert : expert + 2].tolist()
        return self.rows[start:stop], self.weights[start:stop]

    def size(self, expert: int) -> int:
        """How many rows go to ``expert``."""
        start, stop = self.starts[expert : expert + 2].tolist()
        return int(stop - start)

    def visits(self, expert: int) -> bool:
        """Whether any row goes to ``expert``."""
        return self.size(expert) > 0

    def counts(self) -> list[int]:
        """Rows per expert."""
        starts: list[int] = self.starts.tolist()
        return [after - here for here, after in pairwise(starts)]


class Routed(NamedTuple):
    """``rows`` r of one micro-batch before a layer's experts: normed rows ``x``, the ``hidden``
    rows that results are added to, both fp32 [r or more, D], and who goes where.

    The first half of a cut expert has no ``hidden``, the second no ``x``. ``routing`` None: every
    row visits the only expert, with gate 1.
    """

    rows: int
    x: Tensor | None
    hidden: Tensor | None
    routing: Routing | None
