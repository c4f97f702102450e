"""The cache of keys and values of one layer, as kernels are given it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KvCache(NamedTuple):
    """``values`` [2, blocks, block, KV, d], keys then values, as floats; or as int8 with
    ``scales`` fp32 [2, blocks, block, KV]: integer q of a token and head means scale x q.

    A latent cache has one half, [1, blocks, block, 1, columns]; ``scales`` likewise.
    """

    values: Tensor
    scales: Tensor | None = None
