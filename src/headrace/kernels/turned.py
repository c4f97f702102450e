"""Weights whose rows were rearranged into the order in which native kernels multiply them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headrace.kernels.quantized import QuantizedWeight


@dataclass(frozen=True, eq=False)
class TurnedWeight:
    """A weight [N, K] in the memory and of the form of ``lies_in``, its rows rearranged: what that
    reads as is no weight. Only the kernels whose ``turn`` made it may use it."""

    lies_in: Tensor | QuantizedWeight

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight."""
        rows, columns = self.lies_in.shape
        return rows, columns


Weight = Tensor | QuantizedWeight | TurnedWeight
"""A weight in any form that kernels take."""
