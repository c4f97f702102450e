"""A run held against its prediction: errors by job, lane and op, and the profile it suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from headrace.errors import DocumentError, UsageError
from headrace.planner.profile import Profile, ShapeCurves
from headrace.planner.timed import op_of
from headrace.specs.hardware import ATTENTION, DISK, Curve

LEAST_SHARE = 0.01
"""Of the wall time: what took less says nothing about a machine."""

_MOST_SCALE = 4.0


class Compared(NamedTuple):
    """Seconds predicted and measured of one thing: ``kind`` is job, lane or op."""

    kind: str
    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float | None:
        """How much longer the prediction was, as a share of what was measured; None when there
        was nothing to compare."""
        if self.predicted <= 0 or self.measured <= 0:
            return None
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class Run:
    """What ``run-batch`` leaves beside its output: the summary of the run, and the curves that its
    prediction was made with."""

    summary: Mapping[str, Any]
    shape: ShapeCurves

    @property
    def wall_seconds(self) -> float:
        """From the first sweep's start to the last durable line."""
        return float(self.summary["wall_seconds"])

    def compared(self) -> list[Compared]:
        """Job time before and after (lengths as they came out), lanes, ops; longest first."""
        summary, wall = self.summary, self.wall_seconds
        before = "before, lengths assumed" if summary["predicted_assumed"] else "before"
        rows = [
            Compared("job", before, summary["predicted_seconds"], wall),
            Compared("job", "after, lengths known", summary["predicted_after_seconds"], wall),
        ]
        for kind, table, measured, predicted in (
            ("lane", summary["lanes"], "busy_seconds", "predicted_busy_seconds"),
            ("op", summary["ops"], "seconds", "predicted_seconds"),
        ):
            found = [
                Compared(kind, name, each[predicted], each[measured])
                for name, each in table.items()
                if predicted in each
            ]
            rows += sorted(found, key=lambda row: -row.measured)
        return rows


def updated(profile: Profile, run: Run) -> Profile:
    """``profile`` with what ``run`` showed: the curve of each op that took LEAST_SHARE of the time
    scaled by predicted over measured (and what attention takes anyway, the other way),
    the disk's rates alike if the run was bound by it. What earlier residuals have in common was of
    the curves as they were; what they differ by stays."""
    rows = {(row.kind, row.name): row for row in run.compared()}
    scale = _scale(rows.get(("lane", "disk")), run) if run.summary["bound_by"] == "disk" else 1.0
    attention = _scale(rows.get(("op", ATTENTION)), run)
    shape = replace(
        run.shape,
        efficiency={
            name: _scaled(curve, _scale(rows.get(("op", op_of(name))), run))
            for name, curve in run.shape.efficiency.items()
        },
        attention_seconds=run.shape.attention_seconds / attention,
        attended_seconds=run.shape.attended_seconds / attention,
        roofs=_faster(run.shape.roofs, scale),
        lane_rate=run.shape.lane_rate * scale,
    )
    others = [known for known in profile.shapes if known.distance(shape) > 0]
    hardware = profile.hardware
    roofs = _faster(hardware.roofs, scale)
    hardware = replace(hardware, roofs=roofs, lane_rate=hardware.lane_rate * scale)
    mean = math.fsum(profile.residuals) / max(1, len(profile.residuals))
    residuals = tuple(each - mean for each in profile.residuals)
    return replace(profile, shapes=(*others, shape), hardware=hardware, residuals=residuals)


def _scaled(curve: Curve, scale: float) -> Curve:
    return tuple((rows, min(1.0, share * scale)) for rows, share in curve)


def _faster(roofs: Mapping[str, float], scale: float) -> dict[str, float]:
    """With the disk's rate scaled."""
    return {**roofs, DISK: roofs[DISK] * scale}


def run_from(data: object, shape_from: Any) -> Run:
    """The run that ``run-batch`` stored. Raises UsageError for anything else."""
    try:
        assert isinstance(data, Mapping)
        run = Run(data["summary"], shape_from(data["shape"]))
        for row in run.compared():
            float(row.predicted), float(row.measured)
        if run.summary["bound_by"] not in ("cpu", "disk") or run.wall_seconds <= 0:
            raise ValueError("bound_by or wall_seconds")
    except _DAMAGE as error:
        raise UsageError(
            "this is no record of a run",
            got=f"{type(error).__name__}: {error}"[:200],
            hint="run-batch writes one beside its output",
        ) from error
    return run


_DAMAGE = (DocumentError, AssertionError, KeyError, TypeError, ValueError, AttributeError)


def _scale(row: Compared | None, run: Run) -> float:
    """Predicted over measured, within bounds; 1 of what took too little to tell."""
    if row is None or row.error is None or row.measured < LEAST_SHARE * run.wall_seconds:
        return 1.0
    return min(_MOST_SCALE, max(1 / _MOST_SCALE, row.predicted / row.measured))
