"""A machine as a file: what ``--hardware file.yaml`` reads, and what a plan keeps of its machine.

The fields are those of ``Hardware``, in SI units, or sizes as ``16GB`` and rates as ``12GB/s``.
``like: NAME`` begins with a machine of the registry, so that only what differs need be written.
A file of the classic profile form is recognised by its ``hardware`` section (see ``classic``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from headrace.errors import DocumentError
from headrace.planner.classic import classic_hardware
from headrace.planner.fields import known_fields, mapping, number, rate, size, switch, text, whole
from headrace.specs.hardware import (
    CPU_FLOPS,
    D2H,
    DISK,
    DRAM,
    GPU_FLOPS,
    H2D,
    HBM,
    HOST,
    OF_DEVICE,
    Curve,
    Hardware,
)
from headrace.specs.registry import known_hardware

ROOFS = (CPU_FLOPS, DRAM, DISK, HOST, GPU_FLOPS, HBM, H2D, D2H)
TIERS = ("host", "pinned", "device", "disk")
NEEDED = (CPU_FLOPS, DRAM, DISK)
DEVICE = (GPU_FLOPS, HBM, H2D, D2H)
MOST_POINTS = 64
MOST_CURVES = 200
MOST_DEVICES = 64

_NAMES = frozenset(f.name for f in fields(Hardware))


def hardware_document(hardware: Hardware) -> dict[str, Any]:
    """``hardware`` as plain data; what has no number (an infinite rate, None) is left out, and so
    is a link whose accelerator has no rates: no plan rests on it."""
    found = {name: _plain(value) for name, value in asdict(hardware).items()}
    if not hardware.has_device:
        found["roofs"] = {r: rate for r, rate in found["roofs"].items() if r not in OF_DEVICE}
    return {k: value for k, value in found.items() if value is not None and value != math.inf}


def read_hardware(document: object, name: str, profile: str | None = None) -> Hardware:
    """The machine that ``document`` (plain data of a file called ``name``) describes.

    ``profile`` picks one of several in a classic file. Raises DocumentError for anything missing,
    unknown or out of range, and UsageError for an unknown machine behind ``like``.
    """
    whole = mapping(document, name)
    if "hardware" in whole and not _NAMES & (whole.keys() - {"name"}):
        return classic_hardware(whole, name, profile)
    if profile is not None:
        raise DocumentError(f"{name} holds one machine", got=f"a profile name, {profile[:80]}")
    given = known_fields(whole, name, _NAMES | {"like"})
    base = _base(given.get("like"), name)
    values = {key: _read(key, value, name) for key, value in given.items() if key != "like"}
    for part in ("roofs", "capacity", "efficiency"):
        values[part] = {**base.get(part, {}), **values.get(part, {})}
    _check_roofs(values["roofs"], name)
    values["roofs"].setdefault(HOST, 1.0)
    return Hardware(**{"name": name, **base, **values})


def _base(like: object, name: str) -> dict[str, Any]:
    if like is None:
        return {}
    found = known_hardware(text(like, f"like of {name}")).hardware
    return {f.name: getattr(found, f.name) for f in fields(Hardware)} | {"measured": False}


def _read(key: str, value: object, name: str) -> Any:
    where = f"{key} of {name}"
    if key == "name":
        return text(value, where)
    if key == "measured":
        return switch(value, where)
    if key == "devices":
        return whole(value, where, 1, MOST_DEVICES)
    if key == "lane_rate":
        return rate(value, where)
    if key == "roofs":
        found = known_fields(value, where, ROOFS)
        return {roof: rate(v, f"{roof} of {name}") for roof, v in found.items()}
    if key == "capacity":
        found = known_fields(value, where, TIERS)
        return {tier: size(v, f"{tier} of {name}") for tier, v in found.items()}
    if key == "efficiency":
        curves = mapping(value, where, MOST_CURVES).items()
        return {text(op, where): _curve(points, f"{op[:80]} in {where}") for op, points in curves}
    if key in ("bias", "error"):
        return number(value, where, -_MOST_OFF if key == "bias" else 0.0, _MOST_OFF)
    return number(value, where, 0.0, 1e6)


_MOST_OFF = 5.0  # of ln(measured / played), as in a profile


def _curve(value: object, where: str) -> Curve:
    """(rows, share) points: rows ascending from 1 on, shares above 0 and at most 1."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_POINTS:
        raise DocumentError(where, expected=f"1 to {MOST_POINTS} points [rows, share]")
    points: list[tuple[float, float]] = []
    for point in value:
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise DocumentError(where, expected="points [rows, share]", got=repr(point)[:80])
        least = points[-1][0] * (1 + 1e-9) if points else 1.0
        rows = number(point[0], f"rows of {where}", least, 1e9)
        points.append((rows, number(point[1], f"share of {where}", 1e-9, 1.0)))
    return tuple(points)


def _check_roofs(roofs: Mapping[str, float], name: str) -> None:
    missing = [roof for roof in NEEDED if roof not in roofs]
    if any(roof in roofs for roof in DEVICE):
        missing += [roof for roof in DEVICE if roof not in roofs]
    if missing:
        raise DocumentError(
            f"roofs of {name}",
            expected=", ".join(missing),
            hint="add them, or begin with `like: NAME` of a machine of the registry",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
