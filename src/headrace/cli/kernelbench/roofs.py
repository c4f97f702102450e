"""What this machine can do at most, measured with the same threads and in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.cli.kernelbench.timing import Watch
from headrace.kernels.native import available, native_module
from headrace.memory.arena import Arena
from headrace.memory.kvcache import tensor

DEFAULT_CACHE = 32 << 20
"""Bytes of the last-level cache where the system does not say."""


@dataclass(frozen=True)
class Roofs:
    """Bytes/s and FLOP/s (a multiply-add is two, of any format). None: not measured.

    ``dram`` reads memory much larger than the last-level cache, ``cache`` 4 MiB of it; ``fma``,
    ``int8_dot`` and ``bf16_dot`` run in registers alone; ``sgemm`` is torch's large square product.
    """

    dram: float
    cache: float
    fma: float
    sgemm: float
    int8_dot: float | None = None
    bf16_dot: float | None = None
    disk: float | None = None

    def binding(self, amounts: Mapping[str, float]) -> tuple[str, float]:
        """The roof that takes longest over its amount, and its seconds."""
        rates = {name: rate for name, rate in asdict(self).items() if rate}
        seconds = {name: amount / rates[name] for name, amount in amounts.items() if name in rates}
        roof = max(seconds, key=lambda name: seconds[name])
        return roof, seconds[roof]


class Reads:
    """Reads memory much larger than the last-level cache with all threads, a part at a time. It
    takes eight caches of it, at least 256 MB, as the engine takes its own: with huge pages where
    there are any."""

    def __init__(self, threads: int, quick: bool) -> None:
        size = (128 << 20) if quick else max(256 << 20, 8 * cache_bytes())
        self.memory = tensor(Arena("roof", size).take("roof", size), "i8", (size,)).fill_(1)
        self.threads = threads
        self.bytes = size // _PARTS
        """Of one call."""

    def __call__(self, i: int) -> None:
        """Read the i-th part; parts come in turn, so that each has left the caches."""
        at = i % _PARTS * self.bytes
        self.read(self.memory[at : at + self.bytes])

    def read(self, block: torch.Tensor) -> None:
        """Read all of ``block``."""
        if available():
            native_module().read_all(block.data_ptr(), block.numel(), self.threads)
        else:
            block.view(torch.float32).sum()


_PARTS = 4


def measure_roofs(reads: Reads, watch: Watch, quick: bool) -> Roofs:
    """All roofs but the disk's."""
    threads, near = reads.threads, reads.memory[: 4 << 20]

    def reads_of(block: torch.Tensor) -> float:
        return block.numel() / watch.best(lambda i: reads.read(block))

    sgemm = _sgemm(threads, watch, 1024 if quick else 2048)
    if not available():
        return Roofs(reads_of(reads.memory), reads_of(near), sgemm, sgemm)
    native = native_module()

    def burns(loop: Callable[[int, int], float]) -> float | None:
        flops = loop(threads, 200_000)
        return flops / watch.best(lambda i: loop(threads, 200_000)) if flops else None

    fma = burns(native.multiply_floats) or sgemm
    dots = burns(native.multiply_bytes), burns(native.multiply_pairs)
    return Roofs(reads_of(reads.memory), reads_of(near), fma, sgemm, *dots)


def cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache, DEFAULT_CACHE where the system does not say."""
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=DEFAULT_CACHE)


def _sgemm(threads: int, watch: Watch, size: int) -> float:
    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    out: Any = torch.empty(size, size)
    return 2.0 * size**3 / watch.best(lambda i: torch.mm(a, b, out=out))
