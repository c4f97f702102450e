"""Where a machine's profile lives, and what of a measurement goes into it. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from headrace import __version__
from headrace.engine.durable import write_durably
from headrace.errors import StorageError, UsageError
from headrace.kernels.native import available
from headrace.planner.profile import FORMAT, SECONDS, Profile, Read, ShapeCurves, profile_from
from headrace.specs.hardware import Hardware

MOST_BYTES = 16 << 20
"""A larger file is no profile of ours."""


def machine_profile(
    found: Sequence[Hardware],
    shapes: Sequence[ShapeCurves],
    made: str,
    reads: Sequence[Read] = (),
    beside: Mapping[str, float] | None = None,
    link: Mapping[str, float] | None = None,
) -> Profile:
    """One profile of several measurements of this machine: of a rate the median, of each shape
    its own curves. ``link`` are the roofs of a link to an accelerator, if there is one."""
    first = found[0]
    middle = {
        name: statistics.median(getattr(hardware, name) for hardware in found)
        for name in ("lane_rate", *SECONDS, "noise")
    }
    roofs = {
        roof: statistics.median(hardware.roofs[roof] for hardware in found) for roof in first.roofs
    } | dict(link or {})
    return Profile(
        made=made,
        machine=this_machine(),
        hardware=replace(first, roofs=roofs, efficiency={}, capacity={}, error=None, **middle),
        reads=tuple(reads),
        shapes=tuple(shapes),
        beside=dict(beside or {}),
    )


def this_machine() -> dict[str, str]:
    """What a profile must have been made on, and with, to be believed here."""
    threads = len(os.sched_getaffinity(0))
    return {
        "processor": _processor(),
        "threads": str(threads),
        "kernels": "native" if available() else "reference",
        "headrace": __version__,
    }


def dated(seconds: float) -> str:
    """``seconds`` since 1970 as profiles carry them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def profile_path(environment: Mapping[str, str]) -> Path:
    """The file in the user's cache: XDG_CACHE_HOME/headrace/profile.json."""
    base = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "headrace" / "profile.json"


def read_profile(path: Path) -> Profile | None:
    """The profile kept at ``path``, None if there is none.

    Raises UsageError for a damaged one, an older version's, and for one made on another machine or
    by other kernels."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"the profile {path} cannot be read", got=error.strerror) from error
    profile = _parsed(path, data)
    here = this_machine()
    other = sorted(
        k for k in here.keys() | profile.machine.keys() if here.get(k) != profile.machine.get(k)
    )
    if other:
        raise UsageError(
            f"the profile {path} was made elsewhere: {', '.join(other)} differ",
            expected=", ".join(f"{k} {here.get(k)}" for k in other),
            got=", ".join(f"{k} {profile.machine.get(k)}" for k in other),
            hint="headrace calibrate makes a new one",
        )
    return profile


def keep_profile(path: Path, profile: Profile) -> None:
    """Store ``profile``, all or nothing. Raises StorageError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(profile.to_dict(), indent=1).encode() + b"\n")
    except OSError as error:
        raise StorageError(
            f"the profile cannot be kept in {path.parent}",
            got=error.strerror or str(error),
            hint="set XDG_CACHE_HOME to a folder that can be written",
        ) from error


def _parsed(path: Path, data: bytes) -> Profile:
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if isinstance(found, dict) and found.get("format") in range(1, FORMAT):
        raise UsageError(
            f"the profile {path} was made by an older version",
            expected=f"format {FORMAT}",
            got=found["format"],
            hint=_AGAIN,
        )
    try:
        return profile_from(found)
    except UsageError as error:
        raise _damaged(path, error.got) from error


def _damaged(path: Path, reason: object) -> UsageError:
    return UsageError(f"the profile {path} is damaged", got=str(reason)[:200], hint=_AGAIN)


_AGAIN = "headrace calibrate makes a new one"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    lines = (
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
    )
    return next(lines, platform.machine())
