"""The cache of keys and values of one layer, as kernels are given it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KvCache(NamedTuple):
    """``values`` [2, blocks, KV, block, d], keys then values, as floats; or as int8 with
    ``scales`` fp32 [2, blocks, KV, block]: integer q of a token and head means scale x q.

    Keys lie turned: the memory of a block and head is [d, block], so that a column of
    neighbouring keys is read at once. ``half`` hides that.

    A latent cache has one half that is not turned, [1, blocks, 1, block, columns]; ``scales``
    likewise.
    """

    values: Tensor
    scales: Tensor | None = None

    def half(self, half: int) -> Tensor:
        """A view of keys (0) or values (1): [blocks, KV, block, d] whatever the order in memory."""
        return turned(self.values[half]) if half < len(self.values) - 1 else self.values[half]


def turned(keys: Tensor) -> Tensor:
    """``keys`` [..., block, d] whose memory is [..., d, block]: a view that says so."""
    *outer, block, d = keys.shape
    return keys.view(*outer, d, block).transpose(-2, -1)
