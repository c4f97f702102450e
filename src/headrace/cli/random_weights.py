"""Random weights, fast: normal numbers drawn by looking random 16-bit integers up in a table.

Each tensor has its own generator, keyed by (seed, name), so a tensor's values depend on
neither the order nor the presence of others. About a gigabyte per second and core.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 22
"""Elements drawn at a time: what bounds memory, whatever the size of a tensor."""


class RandomWeights:
    """Draws tensors of one stored format: ``bf16``, ``f16`` or ``f32``."""

    def __init__(self, dtype: str, seed: int) -> None:
        import numpy as np

        quantiles = NormalDist().inv_cdf
        self.normal = np.array([quantiles((i + 0.5) / 65536) for i in range(65536)], np.float32)
        self.dtype = dtype
        self.seed = seed

    def chunks(self, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """The bytes of a tensor in pieces. Vectors are 1 (norms) or 0 (biases); a matrix has
        standard deviation 1 / sqrt(columns), which keeps activations near unit scale."""
        import numpy as np

        count = math.prod(shape)
        if len(shape) == 1:
            value = np.float32(0.0 if name.endswith("bias") else 1.0)
            yield to_format(np.full(count, value, np.float32), self.dtype)
            return
        table = to_format(self.normal / np.float32(math.sqrt(shape[1])), self.dtype)
        key = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
        for start in range(0, count, CHUNK):
            drawn = min(CHUNK, count - start)
            yield table.take(np.frombuffer(generator.bytes(2 * drawn), np.uint16))


def to_format(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in a stored format; bf16 as the uint16 of its bits, rounded to even."""
    import numpy as np

    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
