"""What was measured of one machine, kept: its roofs, how close operations of several shapes come
to them, how fast it reads, and how far predictions were from runs.

A profile is data that anybody may have written: every field is checked when it is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from headrace.errors import UsageError
from headrace.planner.interval import half_width
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, Curve, Hardware
from headrace.specs.model import ModelSpec

FORMAT = 2

MEASURED = (CPU_FLOPS, DRAM, DISK)
"""Roofs of a machine that are measured."""

MOST_RESIDUALS = 64
"""Runs that are remembered; older ones are forgotten."""


class Read(NamedTuple):
    """Bytes/s of direct reads of ``request_bytes`` each, ``depth`` of them in flight."""

    request_bytes: int
    depth: int
    rate: float


@dataclass(frozen=True)
class ShapeCurves:
    """How close a model of this shape comes to the roofs, op by op. ``streams``: measured beside
    reads, experts passing through a ring. ``roofs`` and ``lane_rate`` are the rates that the shares
    are of; ``task_seconds`` and ``row_read_seconds`` as in Hardware. ``activations`` is what the
    weights are multiplied with."""

    weights: str
    hidden: int
    ffn_width: int
    q_size: int
    kv_size: int
    kv_dtype: str
    streams: bool
    efficiency: Mapping[str, Curve]
    roofs: Mapping[str, float]
    lane_rate: float
    task_seconds: float
    row_read_seconds: float
    activations: str

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        kv_dtype: str,
        streams: bool,
        hardware: Hardware,
        activations: str = "int8",
    ) -> ShapeCurves:
        """Those of ``hardware``, measured with ``model``; ``activations`` as in Policy."""
        sizes = (model.hidden, model.ffn_width, model.q_size, model.kv_size)
        roofs = {roof: hardware.roofs[roof] for roof in MEASURED}
        return cls(
            *(weights_of(model), *sizes, kv_dtype, streams, dict(hardware.efficiency), roofs),
            hardware.lane_rate,
            hardware.task_seconds,
            hardware.row_read_seconds,
            met(model, activations),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def distance(self, other: ShapeCurves) -> float:
        """How little this shape says of another: doublings of its sizes, formats first."""
        sizes = ("hidden", "ffn_width", "q_size", "kv_size")
        apart = sum(abs(math.log2(getattr(self, n) / getattr(other, n))) for n in sizes)
        formats = 100.0 * (self.weights != other.weights) + 10.0 * (self.kv_dtype != other.kv_dtype)
        formats += 50.0 * (self.activations != other.activations)
        return apart + formats + 1.0 * (self.streams != other.streams)


@dataclass(frozen=True)
class Profile:
    """One machine on one day. ``made`` is an ISO date and time, ``machine`` says whose it is and
    what measured it. ``hardware`` holds roofs and host times (its curves are in ``shapes``).
    ``beside`` says what reads and arithmetic keep of their rates while both go on, ``residuals``
    are ln(measured / predicted) of runs, oldest first."""

    made: str
    machine: Mapping[str, str]
    hardware: Hardware
    reads: tuple[Read, ...] = ()
    shapes: tuple[ShapeCurves, ...] = ()
    residuals: tuple[float, ...] = ()
    beside: Mapping[str, float] = field(default_factory=dict)

    def hardware_for(
        self, model: ModelSpec, kv_dtype: str, streams: bool, activations: str = "int8"
    ) -> Hardware:
        """The machine as a run of ``model`` meets it: curves of the nearest shape measured."""
        wanted = ShapeCurves.of(model, kv_dtype, streams, self.hardware, activations)
        nearest = min(self.shapes, key=wanted.distance, default=wanted)
        return replace(
            self.hardware,
            roofs={**self.hardware.roofs, **nearest.roofs},
            efficiency=nearest.efficiency,
            lane_rate=nearest.lane_rate,
            task_seconds=nearest.task_seconds,
            row_read_seconds=nearest.row_read_seconds,
            error=half_width(self.residuals, self.hardware.noise),
        )

    def known_for(
        self, model: ModelSpec, kv_dtype: str, streams: bool, activations: str = "int8"
    ) -> Hardware | None:
        """The same, if a model in ``model``'s format was measured with such activations: roofs of
        arithmetic differ."""
        wanted = weights_of(model), met(model, activations)
        if any((shape.weights, shape.activations) == wanted for shape in self.shapes):
            return self.hardware_for(model, kv_dtype, streams, activations)
        return None

    def with_residuals(self, added: Sequence[float]) -> Profile:
        """The same with runs added, the oldest forgotten."""
        return replace(self, residuals=(*self.residuals, *added)[-MOST_RESIDUALS:])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        hardware = {
            k: v for k, v in asdict(self.hardware).items() if k not in ("efficiency", "error")
        }
        return {
            "format": FORMAT,
            "made": self.made,
            "machine": dict(self.machine),
            "hardware": hardware,
            "reads": [read._asdict() for read in self.reads],
            "shapes": [asdict(shape) for shape in self.shapes],
            "residuals": list(self.residuals),
            "beside": dict(self.beside),
        }


def weights_of(model: ModelSpec) -> str:
    """The format of most weights, as profiles name it."""
    return model.weight_dtype if model.integers is None else model.integers.label


def met(model: ModelSpec, activations: str) -> str:
    """What ``model``'s weights are multiplied with under a policy's ``activations``."""
    return "f32" if model.integers is None and activations == "int8" else activations


def profile_from(data: object) -> Profile:
    """The profile that ``to_dict`` made. Raises UsageError for anything else."""
    try:
        return _profile(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            "this is no profile of a machine",
            got=f"{type(error).__name__}: {error}"[:200],
            hint="headrace calibrate makes a new one",
        ) from error


def _profile(data: Any) -> Profile:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, expected {FORMAT}")
    machine = {_text(k): _text(v) for k, v in data["machine"].items()}
    return Profile(
        made=_text(data["made"]),
        machine=machine,
        hardware=_hardware(data["hardware"]),
        reads=tuple(
            Read(_whole(r["request_bytes"]), _whole(r["depth"]), _rate(r["rate"]))
            for r in data["reads"]
        ),
        shapes=tuple(map(shape_from, data["shapes"])),
        residuals=tuple(_between(value, -5.0, 5.0) for value in data["residuals"]),
        beside={_text(k): _between(v, 0.0, 1.0) for k, v in data["beside"].items()},
    )


def _hardware(data: Any) -> Hardware:
    known = {each.name for each in fields(Hardware)} - {"efficiency", "error"}
    if data.keys() != known:
        raise ValueError("hardware has other fields")
    roofs = {_text(name): _rate(rate) for name, rate in data["roofs"].items()}
    if missing := set(MEASURED) - roofs.keys():
        raise ValueError(f"no rate of {sorted(missing)}")
    return Hardware(
        name=_text(data["name"]),
        roofs=roofs,
        capacity={_text(k): _whole(v) for k, v in data["capacity"].items()},
        lane_rate=_rate(data["lane_rate"]),
        row_seconds=_seconds(data["row_seconds"]),
        token_seconds=_seconds(data["token_seconds"]),
        sequence_seconds=_seconds(data["sequence_seconds"]),
        row_read_seconds=_seconds(data["row_read_seconds"]),
        task_seconds=_seconds(data["task_seconds"]),
        measured=data["measured"] is True,
        noise=_between(data["noise"], 0.0, 1000.0),
    )


def shape_from(data: Any) -> ShapeCurves:
    """The shape that ``to_dict`` made. Raises ValueError and its kin for anything else."""
    return ShapeCurves(
        weights=_text(data["weights"]),
        hidden=_whole(data["hidden"]),
        ffn_width=_whole(data["ffn_width"]),
        q_size=_whole(data["q_size"]),
        kv_size=_whole(data["kv_size"]),
        kv_dtype=_text(data["kv_dtype"]),
        streams=data["streams"] is True,
        efficiency={_text(op): _curve(points) for op, points in data["efficiency"].items()},
        roofs={roof: _rate(data["roofs"][roof]) for roof in MEASURED},
        lane_rate=_rate(data["lane_rate"]),
        task_seconds=_seconds(data["task_seconds"]),
        row_read_seconds=_seconds(data["row_read_seconds"]),
        activations=_text(data["activations"]),
    )


def _curve(points: Any) -> Curve:
    curve = tuple((_between(r, 0.0, 1e9), _between(s, 1e-9, 1.0)) for r, s in points)
    if not curve or any(b[0] <= a[0] for a, b in itertools.pairwise(curve)):
        raise ValueError("points of a curve that do not ascend")
    return curve


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 500:
        raise ValueError(f"expected a short text, got {str(value)[:40]!r}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 60:
        raise ValueError(f"expected a whole number above 0, got {str(value)[:40]!r}")
    return value


def _rate(value: Any) -> float:
    return _between(value, 1e-9, 1e30)


def _seconds(value: Any) -> float:
    return _between(value, 0.0, 1e6)


def _between(value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"expected a number from {low:g} to {high:g}, got {str(value)[:40]!r}")
    return float(value)
