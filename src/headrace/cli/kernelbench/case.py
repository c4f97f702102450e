"""One row to be: a kernel on one shape and format, its work, and torch's ways of doing the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from headrace.cli.kernelbench.roofs import Roofs
from headrace.cli.kernelbench.timing import Watch

Run = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """``run(i)`` does the work once. ``bytes_from`` is the roof that ``bytes`` are read from:
    dram for what a sweep finds cold, cache for activations; ``flops_on`` the arithmetic's.
    ``torch_ways`` name callables that do the same in torch, all threads allowed, whatever our
    format: they are timed once for each kernel and shape.
    """

    kernel: str
    shape: str
    format: str
    run: Run
    bytes: float = 0.0
    flops: float = 0.0
    bytes_from: str = "dram"
    flops_on: str = "fma"
    torch_ways: Callable[[], Mapping[str, Run]] = field(default=dict)

    @property
    def amounts(self) -> dict[str, float]:
        """Work by roof, without the roofs that it does not touch."""
        both = {self.bytes_from: self.bytes, self.flops_on: self.flops}
        return {roof: amount for roof, amount in both.items() if amount}


@dataclass(frozen=True)
class Row:
    """What was measured. ``percent_of_roof``: the least time that ``roof`` allows, of the time
    taken. ``torch_ratio``: torch's best time over ours (above 1: faster than torch), whatever
    format it is best in; ``torch_seconds`` has every way."""

    kernel: str
    shape: str
    format: str
    threads: int
    gb_per_s: float
    gflop_per_s: float
    roof: str
    percent_of_roof: float
    torch_ratio: float | None
    torch_way: str | None
    torch_seconds: Mapping[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


class Bench:
    """Times cases; remembers torch's times of shapes that come again in another format."""

    def __init__(self, roofs: Roofs, watch: Watch, threads: int, own_torch_threads: int) -> None:
        self._roofs, self._watch, self._threads = roofs, watch, threads
        self._own_torch_threads = own_torch_threads
        self._torch: dict[str, Mapping[str, float]] = {}

    def row(self, case: Case) -> Row:
        """Time one case, and torch's ways of it."""
        torch.set_num_threads(self._own_torch_threads)
        seconds = self._watch.median(case.run)
        roof, least = self._roofs.binding(case.amounts)
        ways = self._torch_ways(case)
        best = min(ways, key=lambda way: ways[way], default=None)
        return Row(
            kernel=case.kernel,
            shape=case.shape,
            format=case.format,
            threads=self._threads,
            gb_per_s=case.bytes / seconds / 1e9,
            gflop_per_s=case.flops / seconds / 1e9,
            roof=roof,
            percent_of_roof=100.0 * least / seconds,
            torch_ratio=ways[best] / seconds if best else None,
            torch_way=best,
            torch_seconds=ways,
            seconds=seconds,
        )

    def _torch_ways(self, case: Case) -> Mapping[str, float]:
        key = f"{case.kernel} {case.shape}"
        if key not in self._torch:
            torch.set_num_threads(self._threads)
            ways = case.torch_ways().items()
            self._torch[key] = {way: self._watch.median(run) for way, run in ways}
        return self._torch[key]
