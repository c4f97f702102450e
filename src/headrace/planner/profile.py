"""What was measured of one machine, kept: its roofs, how close operations of several shapes come
to them, how fast it reads, and how far predictions were from runs.

A profile is data that anybody may have written: every field is checked when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from headrace.errors import DocumentError, UsageError
from headrace.planner.fields import known_fields, mapping, number, short, switch, text, whole
from headrace.planner.interval import bias, half_width
from headrace.planner.stalls import MOST_CONTENTION
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, Curve, Hardware
from headrace.specs.model import ModelSpec

FORMAT = 5

MEASURED = (CPU_FLOPS, DRAM, DISK)
"""Roofs of a machine that are measured."""

SECONDS = (
    "task_seconds",
    "passed_seconds",
    "attention_seconds",
    "attended_seconds",
    "row_seconds",
    "token_seconds",
    "row_read_seconds",
)
"""What a shape has beside its curves, as in Hardware."""

MOST_RESIDUALS, MOST_RESIDUAL = 64, 1.0
"""Runs that are remembered (older ones are forgotten), and how far from its prediction one may
end to be remembered: 2.7 times."""


class Read(NamedTuple):
    """Bytes/s of direct reads of ``request_bytes`` each, ``depth`` of them in flight."""

    request_bytes: int
    depth: int
    rate: float


@dataclass(frozen=True)
class ShapeCurves:
    """How close a model of this shape comes to the roofs, op by op. ``streams``: measured beside
    reads, experts passing through a ring. ``roofs`` and ``lane_rate`` are the rates that the shares
    are of; seconds as in Hardware. ``activations`` is what the weights are multiplied with."""

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
    passed_seconds: float
    attention_seconds: float
    attended_seconds: float
    row_seconds: float
    token_seconds: float
    row_read_seconds: float
    contention: float
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
            lane_rate=hardware.lane_rate,
            task_seconds=hardware.task_seconds,
            passed_seconds=hardware.passed_seconds,
            attention_seconds=hardware.attention_seconds,
            attended_seconds=hardware.attended_seconds,
            row_seconds=hardware.row_seconds,
            token_seconds=hardware.token_seconds,
            row_read_seconds=hardware.row_read_seconds,
            contention=hardware.contention,
            activations=met(model, activations),
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
    are ln(measured / played) of runs, oldest first: less what others had shown, if they had."""

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
            **{name: getattr(nearest, name) for name in SECONDS},
            contention=nearest.contention,
            bias=bias(self.residuals),
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
        """The same with runs added, the oldest forgotten; not those that something else than this
        machine kept (a job that was stopped for a while)."""
        kept = [each for each in added if abs(each) <= MOST_RESIDUAL]
        return replace(self, residuals=(*self.residuals, *kept)[-MOST_RESIDUALS:])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        hardware = {k: v for k, v in asdict(self.hardware).items() if k not in _APART}
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
    except DocumentError as error:
        raise UsageError(
            "this is no profile of a machine",
            got=str(error)[:300],
            hint="headrace calibrate makes a new one",
        ) from error


def shape_from(data: object, where: str = "the shape") -> ShapeCurves:
    """The shape that ``to_dict`` made. Raises DocumentError for anything else."""
    found = _fields(data, where, ShapeCurves)
    hidden, ffn_width, q_size, kv_size = (
        whole(found[name], f"{name} of {where}", 1, _MOST) for name in _SIZES
    )
    curves = mapping(found["efficiency"], f"efficiency of {where}").items()
    roofs = _named(found["roofs"], f"roofs of {where}", MEASURED)
    return ShapeCurves(
        weights=text(found["weights"], f"weights of {where}"),
        hidden=hidden,
        ffn_width=ffn_width,
        q_size=q_size,
        kv_size=kv_size,
        kv_dtype=text(found["kv_dtype"], f"kv_dtype of {where}"),
        streams=switch(found["streams"], f"streams of {where}"),
        efficiency={op: _curve(points, f"{op[:80]} of {where}") for op, points in curves},
        roofs={roof: _rate(roofs[roof], f"{roof} of {where}") for roof in MEASURED},
        lane_rate=_rate(found["lane_rate"], f"lane_rate of {where}"),
        **{name: _seconds(found[name], f"{name} of {where}") for name in SECONDS},
        contention=_contention(found["contention"]),
        activations=text(found["activations"], f"activations of {where}"),
    )


def _contention(data: object) -> float:
    return number(data, "contention", 0.0, MOST_CONTENTION)


_SIZES = ("hidden", "ffn_width", "q_size", "kv_size")
_MOST = 1 << 60
_LONGEST = 500  # characters of a text
_TOP = ("format", "made", "machine", "hardware", "reads", "shapes", "residuals", "beside")


def _profile(data: object) -> Profile:
    found = _named(data, "the profile", _TOP)
    whole(found["format"], "format", FORMAT, FORMAT)
    machine = mapping(found["machine"], "machine")
    beside = mapping(found["beside"], "beside")
    return Profile(
        made=text(found["made"], "made", _LONGEST),
        machine={name: text(v, f"{name[:80]} of machine", _LONGEST) for name, v in machine.items()},
        hardware=_hardware(found["hardware"]),
        reads=tuple(_read(read) for read in _list(found["reads"], "reads")),
        shapes=tuple(shape_from(shape) for shape in _list(found["shapes"], "shapes")),
        residuals=tuple(
            number(value, "a residual", -5.0, 5.0)
            for value in _list(found["residuals"], "residuals")
        ),
        beside={name: number(v, f"{name[:80]} of beside", 0.0, 1.0) for name, v in beside.items()},
    )


def _read(data: object) -> Read:
    found = _named(data, "a read", Read._fields)
    return Read(
        whole(found["request_bytes"], "request_bytes of a read", 1, _MOST),
        whole(found["depth"], "depth of a read", 1, _MOST),
        _rate(found["rate"], "rate of a read"),
    )


def _hardware(data: object) -> Hardware:
    found = _named(data, "hardware", [f.name for f in fields(Hardware) if f.name not in _APART])
    roofs = mapping(found["roofs"], "roofs")
    if missing := sorted(set(MEASURED) - roofs.keys()):
        raise DocumentError("roofs", expected=f"rates of {', '.join(missing)}, too")
    capacity = mapping(found["capacity"], "capacity")
    seconds = {name: _seconds(found[name], name) for name in found if name.endswith("_seconds")}
    return Hardware(
        name=text(found["name"], "name", _LONGEST),
        roofs={name: _rate(value, f"rate of {name[:80]}") for name, value in roofs.items()},
        capacity={
            tier: whole(count, f"capacity of {tier[:80]}", 1, _MOST)
            for tier, count in capacity.items()
        },
        lane_rate=_rate(found["lane_rate"], "lane_rate"),
        row_seconds=seconds["row_seconds"],
        token_seconds=seconds["token_seconds"],
        sequence_seconds=seconds["sequence_seconds"],
        row_read_seconds=seconds["row_read_seconds"],
        task_seconds=seconds["task_seconds"],
        passed_seconds=seconds["passed_seconds"],
        attention_seconds=seconds["attention_seconds"],
        attended_seconds=seconds["attended_seconds"],
        contention=_contention(found["contention"]),
        measured=switch(found["measured"], "measured"),
        noise=number(found["noise"], "noise", 0.0, 1000.0),
    )


# fields of Hardware that a profile keeps elsewhere, or makes
_APART = ("efficiency", "bias", "error")


def _curve(points: object, where: str) -> Curve:
    """(rows, share) points, ascending in rows."""
    curve: list[tuple[float, float]] = []
    for point in _list(points, where):
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise DocumentError(where, expected="points [rows, share]", got=short(point))
        least = math.nextafter(curve[-1][0], math.inf) if curve else 0.0
        rows = number(point[0], f"rows of {where}", least, 1e9)
        curve.append((rows, number(point[1], f"share of {where}", 1e-9, 1.0)))
    if not curve:
        raise DocumentError(where, expected="at least one point")
    return tuple(curve)


def _named(data: object, where: str, names: Collection[str]) -> Mapping[str, Any]:
    """A mapping of exactly these fields."""
    found = known_fields(data, where, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise DocumentError(f"fields of {where}", expected=f"{', '.join(missing)}, too")
    return found


def _fields(data: object, where: str, kind: Any) -> Mapping[str, Any]:
    return _named(data, where, [each.name for each in fields(kind)])


def _list(data: object, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise DocumentError(where, expected="a list", got=short(data))
    return data


def _rate(value: object, where: str) -> float:
    return number(value, where, 1e-9, 1e30)


def _seconds(value: object, where: str) -> float:
    return number(value, where, 0.0, 1e6)
