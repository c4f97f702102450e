"""The hierarchical roofline: what an operation can reach, and where its data should be used.

Levels stand from the largest and slowest memory to the smallest and fastest (disk, host, device),
each with a processor (or none) and a link into it from the level before. P is peak FLOP/s, B
bandwidth in bytes/s, I_x at a level the FLOPs of operation x over the bytes of that level it
touches. Equations 4 to 11 of Cao et al. 2024 (MoE-Lightning, arXiv 2411.11217), stated there for
two levels, here for any number: data from further away crosses every link in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headrace.errors import UsageError
from headrace.specs.hardware import Level


class Operation(NamedTuple):
    """FLOPs of one execution, and the bytes it touches per level (level name -> bytes)."""

    name: str
    flops: float
    bytes: Mapping[str, float]

    def intensity(self, level: str) -> float:
        """I_x of a level in FLOP per byte; infinite where it touches nothing."""
        touched = self.bytes.get(level, 0.0)
        return self.flops / touched if touched else math.inf


class TurningPoints(NamedTuple):
    """Intensities at the level where the data lives. Below ``p1``, compute in place (Eq. 9);
    between the two the link is the bound; above ``p2``, the kernel is (Eq. 10)."""

    p1: float
    p2: float


class Reach(NamedTuple):
    """FLOP/s that an operation reaches, and the roof that bounds it."""

    flops_per_second: float
    bound_by: str


def memory_roof(level: Level, intensity: float) -> float:
    """Eq. 8: min(P, B I), FLOP/s on ``level`` with the data there already."""
    return min(level.flops, level.bandwidth * intensity)


def cross_roof(levels: Sequence[Level], at: int, home: int, intensity: float) -> float:
    """Eq. 6: FLOP/s that data at ``home`` feeds to level ``at``: the slowest link in between
    (and the memory of ``home``) times the intensity there."""
    _check(levels, at, home)
    links = [level.link for level in levels[home + 1 : at + 1]]
    return min([levels[home].bandwidth, *links]) * intensity


def reach(levels: Sequence[Level], operation: Operation, at: int, home: int) -> Reach:
    """Eq. 7: what ``operation`` reaches on level ``at`` with its data at level ``home``."""
    level = levels[at]
    roofs = {
        f"{level.name} arithmetic": level.flops,
        f"{level.name} memory": level.bandwidth * operation.intensity(level.name),
    }
    for far in range(home, at):
        name = f"link {levels[far].name} to {levels[far + 1].name}"
        roofs[name] = levels[far + 1].link * operation.intensity(levels[home].name)
    if home < at:
        far_intensity = operation.intensity(levels[home].name)
        roofs[f"{levels[home].name} memory"] = levels[home].bandwidth * far_intensity
    bound = min(roofs, key=lambda name: roofs[name])
    return Reach(roofs[bound], bound)


def best_place(levels: Sequence[Level], operation: Operation, home: int) -> tuple[int, Reach]:
    """The level on which ``operation`` is fastest, its data at ``home``; the nearest, if equal."""
    found = [(at, reach(levels, operation, at, home)) for at in range(home, len(levels))]
    return max(found, key=lambda each: (each[1].flops_per_second, -each[0]))


def turning_points(
    levels: Sequence[Level], at: int, home: int, intensity: float = math.inf
) -> TurningPoints:
    """P1 and P2 between ``home`` and ``at``, for a kernel of ``intensity`` at ``at``.

    P1 (Eq. 9): where the cross-level roof meets min(P, B I) of ``home``; 0 when ``home`` has no
    processor. Its memory feeds the link, so its own roof is never the lower one before. P2
    (Eq. 10): where it meets min(P, B I) of ``at``.
    """
    _check(levels, at, home)
    if home == at:
        raise UsageError("turning points need two levels", got=levels[at].name)
    link = cross_roof(levels, at, home, 1.0)
    return TurningPoints(levels[home].flops / link, memory_roof(levels[at], intensity) / link)


def balance_ratio(levels: Sequence[Level], at: int, home: int) -> float:
    """Eq. 11: B I at ``at`` equals link x I at ``home`` when bytes moved over the link are this
    share of the bytes that the kernel reads: link over B. At that point neither more tokens nor
    more resident weights help, only larger micro-batches do."""
    return cross_roof(levels, at, home, 1.0) / levels[at].bandwidth


def at_balance(levels: Sequence[Level], operation: Operation, at: int, home: int) -> float:
    """B I at ``at`` over link x I at ``home``: 1 at the balance point (Eq. 11), above it the
    link is the bound, below it the memory of ``at``."""
    here = levels[at].bandwidth * operation.intensity(levels[at].name)
    return here / cross_roof(levels, at, home, operation.intensity(levels[home].name))


def level_index(levels: Sequence[Level], name: str) -> int:
    """Place of the level called ``name``. Raises UsageError."""
    names = [level.name for level in levels]
    if name not in names:
        raise UsageError("no such level", expected=", ".join(names), got=name)
    return names.index(name)


def _check(levels: Sequence[Level], at: int, home: int) -> None:
    if not 0 <= home <= at < len(levels):
        raise UsageError(
            "levels of a roofline",
            expected=f"home <= at, both below {len(levels)}",
            got=f"home {home}, at {at}",
        )
