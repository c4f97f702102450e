"""One row to be: a kernel on one shape and format, its work, and torch's ways of doing the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from statistics import median
from typing import Any

import torch

from headrace.cli.kernelbench.roofs import Reads, Roofs
from headrace.cli.kernelbench.timing import Turn, Watch

Run = Callable[[int], object]

REST = 0.02
"""Seconds before our turn: torch's threads look out for work for some milliseconds after theirs."""


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
    taken; of ``dram`` what a read in turn with it took. ``torch_ratio``: torch's best time over
    ours (above 1: faster than torch), the median of turns, whatever format it is best in;
    ``torch_seconds`` has every way."""

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
    """Times cases, each in turn with what it is compared with: memory may give twice as much at one
    moment as at the next. Remembers which of torch's ways is the best for shapes that come again in
    another format."""

    def __init__(
        self, roofs: Roofs, reads: Reads, watch: Watch, own_torch_threads: int, rest: float = REST
    ) -> None:
        self._roofs, self._reads, self._watch = roofs, reads, watch
        self._own_torch_threads = own_torch_threads
        self._rest = rest
        self._torch: dict[str, Mapping[str, float]] = {}

    def row(self, case: Case) -> Row:
        """Time one case, and torch's ways of it."""
        roof, least = self._roofs.binding(case.amounts)
        ways = case.torch_ways()
        torch_seconds = self._torch_seconds(case, ways)
        best = min(torch_seconds, key=lambda way: torch_seconds[way], default=None)
        untimed = count(step=2)
        turns = [
            Turn(lambda i: case.run(2 * i + 1), lambda: self._our_turn(case.run, next(untimed)))
        ]
        if roof == "dram":
            turns.append(Turn(self._reads))
        if best is not None:
            turns.append(Turn(ways[best], self._torch_threads))
        ours, *others = self._watch.in_turn(turns)
        seconds = median(ours)
        share = least / seconds
        if roof == "dram":
            share = case.bytes / self._reads.bytes * _ratio(others[0], ours)
        return Row(
            kernel=case.kernel,
            shape=case.shape,
            format=case.format,
            threads=self._reads.threads,
            gb_per_s=case.bytes / seconds / 1e9,
            gflop_per_s=case.flops / seconds / 1e9,
            roof=roof,
            percent_of_roof=100.0 * share,
            torch_ratio=None if best is None else _ratio(others[-1], ours),
            torch_way=best,
            torch_seconds=torch_seconds,
            seconds=seconds,
        )

    def _torch_seconds(self, case: Case, ways: Mapping[str, Run]) -> Mapping[str, float]:
        key = f"{case.kernel} {case.shape}"
        if key not in self._torch:
            self._torch_threads()
            self._torch[key] = {way: self._watch.median(run) for way, run in ways.items()}
        return self._torch[key]

    def _torch_threads(self) -> None:
        torch.set_num_threads(self._reads.threads)

    def _our_turn(self, run: Run, i: int) -> None:
        """Wait until torch's threads sleep, then wake ours and fetch Python's code: what is timed
        is the kernel."""
        torch.set_num_threads(self._own_torch_threads)
        time.sleep(self._rest)
        run(i)


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Of samples that belong together."""
    return median(their / own for their, own in zip(theirs, ours, strict=True))
