"""A run held against its prediction: errors by job, lane and op, and the profile it suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from headrace.errors import DocumentError, UsageError
from headrace.planner.interval import bias
from headrace.planner.profile import Profile, ShapeCurves
from headrace.planner.timed import op_of
from headrace.specs.hardware import ATTENTION, DISK, Curve

LEAST_SHARE = 0.01
"""Of the wall time: what took less says nothing about a machine."""

_MOST_SCALE, _MOST_BIAS = 4.0, 5.0


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

    @property
    def bias(self) -> float:
        """Of ln(measured / played), what earlier runs had let expect, in all that was predicted."""
        return float(self.summary["predicted_bias"])

    @property
    def ran_with(self) -> dict[str, str]:
        """Its threads and kernels, as a profile names those that it was made with."""
        policy = self.summary["policy"]
        return {name: str(policy[name]) for name in ("threads", "kernels")}

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
    scaled so that the profile's next prediction of it, with what its residuals let expect, is what
    was measured (what attention takes anyway, the other way); the disk's rates alike if the run was
    bound by it. The run's own residual is there already: ``run-batch`` added it.
    Raises UsageError for a run with other threads or kernels than the profile's.
    """
    made_with = {name: profile.machine.get(name) for name in run.ran_with}
    if made_with != run.ran_with:
        raise UsageError(
            "a profile is of one number of threads, and of one set of kernels",
            expected=", ".join(f"{name} {value}" for name, value in made_with.items()),
            got=", ".join(f"{name} {value}" for name, value in run.ran_with.items()),
        )
    rows = {(row.kind, row.name): row for row in run.compared()}
    longer = math.exp(bias(profile.residuals) - run.bias)

    def scale_of(kind: str, name: str) -> float:
        return _scale(rows.get((kind, name)), run, longer)

    scale = scale_of("lane", "disk") if run.summary["bound_by"] == "disk" else 1.0
    attention = scale_of("op", ATTENTION)
    shape = replace(
        run.shape,
        efficiency={
            name: _scaled(curve, scale_of("op", op_of(name)))
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
    return replace(profile, shapes=(*others, shape), hardware=hardware)


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
            if not math.isfinite(float(row.predicted) + float(row.measured)):
                raise ValueError("seconds that are no number")
        if run.summary["bound_by"] not in ("cpu", "disk") or not run.wall_seconds > 0:
            raise ValueError("bound_by or wall_seconds")
        if not abs(run.bias) <= _MOST_BIAS:
            raise ValueError("predicted_bias")
        dict(run.ran_with)
    except _DAMAGE as error:
        raise UsageError(
            "this is no record of a run",
            got=f"{type(error).__name__}: {error}"[:200],
            hint="run-batch writes one beside its output",
        ) from error
    return run


_DAMAGE = (DocumentError, AssertionError, KeyError, TypeError, ValueError, AttributeError)


def _scale(row: Compared | None, run: Run, longer: float) -> float:
    """What would be predicted now, ``longer`` times what was, over measured, within bounds; 1 of
    what took too little to tell."""
    if row is None or row.error is None or row.measured < LEAST_SHARE * run.wall_seconds:
        return 1.0
    return min(_MOST_SCALE, max(1 / _MOST_SCALE, longer * row.predicted / row.measured))
