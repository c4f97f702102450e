"""A grid of loads, for tables of prices: (rows, tokens that a row attends to, share of prompts).

Between points everything is linear in rows, in the tokens that a row attends to, and in the share
of rows that are prompt, which is how the amounts of a sweep go.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from headrace.planner.sweeps import Load

_PER_OCTAVE = 2  # points per doubling of rows, and of tokens attended to


class Point(NamedTuple):
    """Steps on each axis."""

    rows: int
    kv: int
    prompts: int


def around(load: Load, shares: int) -> Iterator[tuple[Point, float]]:
    """Points around ``load``, with their weights; ``shares`` steps from no prompts to all."""
    if not load.rows:
        return
    attended = load.decode_kv + load.chunk_rows * max(1, load.chunk_kv)
    rows = _between(load.rows)
    kv = _between(max(1.0, attended / load.rows))
    share = shares * load.chunk_rows / load.rows
    low = min(int(share), shares - 1)
    prompts = [(low, 1.0 - (share - low)), (low + 1, share - low)]
    for (r, a), (k, b), (p, c) in product(rows, kv, prompts):
        if a * b * c > 1e-9:
            yield Point(r, k, p), a * b * c


def load_at(point: Point, shares: int) -> Load:
    """The load that ``point`` stands for."""
    rows, kv = _value(point.rows), _value(point.kv)
    chunk = rows * point.prompts // shares
    decodes = rows - chunk
    return Load(decodes, decodes * kv, chunk, kv if chunk else 0, max(1, decodes))


def _between(value: float) -> list[tuple[int, float]]:
    """The two steps of a geometric grid around ``value``, linear in it."""
    step = (int(value).bit_length() - 1) * _PER_OCTAVE
    while _value(step + 1) <= value:
        step += 1
    low, high = _value(step), _value(step + 1)
    share = min(1.0, max(0.0, (value - low) / max(1, high - low)))
    return [(step, 1.0 - share), (step + 1, share)]


def _value(step: int) -> int:
    """Whole numbers, ascending: 1, 2, 3, 4, 6, 8 ..."""
    octave, part = divmod(step, _PER_OCTAVE)
    base = 1 << octave
    return base + base * part // _PER_OCTAVE if base >= _PER_OCTAVE else base + part
