"""What ``roofline`` shows, as data: operations at their intensities under a machine's roofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import UsageError
from headrace.planner.operations import layer_operations
from headrace.planner.roofline import (
    Operation,
    Reach,
    TurningPoints,
    at_balance,
    balance_ratio,
    best_place,
    reach,
    turning_points,
)
from headrace.specs.hardware import Hardware, Level
from headrace.specs.model import KV_FORMATS, ModelSpec
from headrace.specs.policy import Policy


@dataclass(frozen=True)
class Point:
    """One operation with its data at level ``home``: what it reaches on each level from there
    on, and on which it is fastest."""

    operation: Operation
    batch: int
    home: str
    reaches: dict[str, Reach]
    best: str
    turning: TurningPoints | None
    balance: float | None

    @property
    def intensity(self) -> float:
        """FLOP per byte where the data lives."""
        return self.operation.intensity(self.home)


@dataclass(frozen=True)
class OperatingPoint:
    """Where a plan works: N rows a sweep, at most mu of them a kernel, and the operations there."""

    schedule: str
    rows: int
    mu: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """Levels from ``home`` on, the balance ratio of the outermost, all points, and those of a
    plan where there is one."""

    levels: tuple[Level, ...]
    balance: float | None
    points: tuple[Point, ...]
    operating: OperatingPoint | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: FLOP/s, bytes/s, FLOP per byte."""
        return {
            "levels": [level._asdict() for level in self.levels],
            "balance_ratio": self.balance,
            "points": [_point_dict(point) for point in self.points],
            "operating_point": None if self.operating is None else _operating(self.operating),
        }


def chart_of(
    model: ModelSpec,
    machine: Hardware,
    batches: Sequence[int],
    micro_batch: int,
    context: int,
    kv_dtype: str = "f16",
) -> Chart:
    """Operations of one layer per batch size. Data lives on the host beside an accelerator, on
    disk without one. Raises UsageError for formats unknown, or a machine of one level."""
    if kv_dtype not in KV_FORMATS:
        raise UsageError("--kv-cache-dtype", expected=" | ".join(KV_FORMATS), got=kv_dtype)
    levels = machine.levels
    if len(levels) < 2:
        raise UsageError(f"{machine.name} has no two levels", expected="rates of two memories")
    levels = levels[-2:]  # home, and where it is computed otherwise
    points = []
    for batch in batches:
        found = layer_operations(model, batch, min(batch, micro_batch), context, kv_dtype)
        points += [_point(levels, operation, batch) for operation in found]
    return Chart(levels, balance_ratio(levels, 1, 0), tuple(points))


def with_plan(chart: Chart, model: ModelSpec, policy: Policy, context: int) -> Chart:
    """``chart`` with the operating point of ``policy``: decodes over ``context`` tokens."""
    rows, mu = policy.max_rows, policy.mu
    found = layer_operations(model, rows, mu, context, policy.kv_dtype)
    points = tuple(_point(chart.levels, each, rows) for each in found if each.name != _PROMPT)
    return replace(chart, operating=OperatingPoint(policy.schedule, rows, mu, points))


_PROMPT = "attention, prompt"  # depends on neither N nor mu


def _operating(found: OperatingPoint) -> dict[str, Any]:
    return {
        "schedule": found.schedule,
        "rows": found.rows,
        "micro_batch": found.mu,
        "points": [_point_dict(point) for point in found.points],
    }


def _point(levels: Sequence[Level], operation: Operation, batch: int) -> Point:
    home = levels[0].name
    at, _ = best_place(levels, operation, 0)
    return Point(
        operation,
        batch,
        home,
        {level.name: reach(levels, operation, i, 0) for i, level in enumerate(levels)},
        levels[at].name,
        turning_points(levels, 1, 0, operation.intensity(levels[1].name)),
        at_balance(levels, operation, 1, 0),
    )


def _point_dict(point: Point) -> dict[str, Any]:
    return {
        "operation": point.operation.name,
        "batch": point.batch,
        "flops": point.operation.flops,
        "bytes": dict(point.operation.bytes),
        "intensity": point.intensity,
        "reach": {
            level: {"flops_per_second": r.flops_per_second, "bound_by": r.bound_by}
            for level, r in point.reaches.items()
        },
        "best": point.best,
        "turning_points": point.turning._asdict() if point.turning else None,
        "balance": point.balance,
    }
