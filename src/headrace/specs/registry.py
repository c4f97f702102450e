"""Models and machines known by name, read from the data files beside this module."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import UsageError
from headrace.specs.hardware import Hardware
from headrace.specs.model import Mla, ModelSpec, Rope, Router, SharedExpert


@dataclass(frozen=True)
class KnownModel:
    """A published model: its dimensions, where it lives, and its published sizes.

    ``runs`` is False for models that can be planned but not run yet. ``active`` leaves the
    embedding table out where ``active_without_embeddings`` is set.
    """

    name: str
    repo: str
    spec: ModelSpec
    parameters: float
    active: float
    runs: bool = True
    active_without_embeddings: bool = False


@dataclass(frozen=True)
class KnownHardware:
    """A machine's stock figures and where they come from."""

    name: str
    source: str
    hardware: Hardware


def known_models() -> Mapping[str, KnownModel]:
    """All known models by name."""
    return {name: _model(name, entry) for name, entry in _read("registry_models.toml").items()}


def known_model(name: str) -> KnownModel:
    """The model ``name`` (its registry name or repo id, any case). Raises UsageError."""
    models = known_models()
    by_any_name = {n.lower(): m for m in models.values() for n in (m.name, m.repo)}
    found = by_any_name.get(name.lower())
    if found is None:
        raise _unknown("model", name, models)
    return found


def known_hardware(name: str) -> KnownHardware:
    """The machine ``name``. Raises UsageError, listing the known ones."""
    machines = all_known_hardware()
    if name.lower() not in machines:
        raise _unknown("machine", name, machines)
    return machines[name.lower()]


def all_known_hardware() -> Mapping[str, KnownHardware]:
    """All known machines by name."""
    entries = _read("registry_hardware.toml")
    return {name: _hardware(name, _beside_host(entry, entries)) for name, entry in entries.items()}


def _beside_host(entry: dict[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """An accelerator's entry, that of a ``card`` if it names one, with that of the ``host`` it
    names around it."""
    if "host" not in entry:
        return entry
    host, card = entries[entry["host"]], entries[entry["card"]] if "card" in entry else {}
    tables = {
        t: {**host.get(t, {}), **card.get(t, {}), **entry.get(t, {})} for t in ("roofs", "capacity")
    }
    rest = {key: value for key, value in entry.items() if key not in ("host", "card")}
    return {**host, **rest, **tables, "source": f"{entry['source']}; host: {host['source']}"}


def _model(name: str, entry: dict[str, Any]) -> KnownModel:
    fields = dict(entry["spec"])
    rope = Rope(theta=fields.pop("rope_theta", Rope.theta))
    for part, kind in (("mla", Mla), ("shared", SharedExpert), ("router", Router)):
        if part in fields:
            fields[part] = kind(**fields[part])
    return KnownModel(
        name=name,
        repo=entry["repo"],
        spec=ModelSpec(rope=rope, **fields),
        parameters=entry["parameters"],
        active=entry["active"],
        runs=entry.get("runs", True),
        active_without_embeddings=entry.get("active_without_embeddings", False),
    )


def _hardware(name: str, entry: dict[str, Any]) -> KnownHardware:
    fields = {k: v for k, v in entry.items() if k not in ("source", "efficiency", "devices")}
    curves = {
        op: tuple((float(rows), float(share)) for rows, share in points)
        for op, points in entry.get("efficiency", {}).items()
    }
    one = Hardware(name=name, efficiency=curves, **fields)
    return KnownHardware(name, entry["source"], one.times(entry.get("devices", 1)))


def _unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return UsageError(
        f"unknown {kind}",
        expected=", ".join(names),
        got=name,
        hint=close[0] if close else None,
    )


def _read(file: str) -> dict[str, Any]:
    with Path(__file__).with_name(file).open("rb") as stream:
        return tomllib.load(stream)
