"""A grid of loads, for tables of prices: (rows, tokens that a row attends to, share of prompts).

Between points everything is linear in rows, in the tokens that a row attends to, and in the share
of rows that are prompt, which is how the amounts of a sweep go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from headrace.planner.sweeps import Load


class Point(NamedTuple):
    """Steps on each axis."""

    rows: int
    kv: int
    prompts: int


@dataclass(frozen=True)
class Grid:
    """``per_octave`` points per doubling of rows, and of tokens attended to; ``shares`` steps from
    no prompts to all."""

    per_octave: int
    shares: int

    def around(self, load: Load) -> Iterator[tuple[Point, float]]:
        """Points around ``load``, with their weights."""
        if not load.rows:
            return
        attended = load.decode_kv + load.chunk_rows * max(1, load.chunk_kv)
        rows = self._between(load.rows)
        kv = self._between(max(1.0, attended / load.rows))
        share = self.shares * load.chunk_rows / load.rows
        low = min(int(share), self.shares - 1)
        prompts = [(low, 1.0 - (share - low)), (low + 1, share - low)]
        for (r, a), (k, b), (p, c) in product(rows, kv, prompts):
            if a * b * c > 1e-9:
                yield Point(r, k, p), a * b * c

    def load_at(self, point: Point) -> Load:
        """The load that ``point`` stands for."""
        rows, kv = self._value(point.rows), self._value(point.kv)
        chunk = rows * point.prompts // self.shares
        decodes = rows - chunk
        return Load(decodes, decodes * kv, chunk, kv if chunk else 0, max(1, decodes))

    def _between(self, value: float) -> list[tuple[int, float]]:
        """The two steps of the geometric grid around ``value``, linear in it."""
        step = (int(value).bit_length() - 1) * self.per_octave
        while self._value(step + 1) <= value:
            step += 1
        low, high = self._value(step), self._value(step + 1)
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return [(step, 1.0 - share), (step + 1, share)]

    def _value(self, step: int) -> int:
        """Whole numbers, none below the one before: with two per octave 1, 1, 2, 3, 4, 6, 8 ..."""
        octave, part = divmod(step, self.per_octave)
        return (1 << octave) + (part << octave) // self.per_octave
