"""Fields of files that people write: each with its type and range, every fault with its place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from headrace.errors import DocumentError, UsageError
from headrace.specs.units import parse_size

_LONGEST = 40
"""Characters of a number that is written as text."""


def mapping(value: object, where: str, most: int = 1000) -> Mapping[str, Any]:
    """A mapping with text for keys. Raises DocumentError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise DocumentError(where, expected="a mapping", got=short(value))
    if len(value) > most:
        raise DocumentError(where, expected=f"at most {most} entries", got=len(value))
    return value


def known_fields(value: object, where: str, known: Collection[str]) -> Mapping[str, Any]:
    """A mapping of no other keys than ``known``. Raises DocumentError naming the first other."""
    found = mapping(value, where)
    other = next((key for key in found if key not in known), None)
    if other is not None:
        raise DocumentError(
            f"unknown field {other[:80]!r} of {where}", expected=", ".join(sorted(known))
        )
    return found


def number(value: object, where: str, low: float, high: float) -> float:
    """A number in a range. ``12.3e9`` counts: YAML takes it for text. Raises DocumentError."""
    found = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(min(max(value, -1e300), 1e300))
    elif isinstance(value, str) and len(value) <= _LONGEST:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
    if not low <= found <= high:
        raise DocumentError(where, expected=f"{low:g} to {high:g}", got=short(value))
    return found


def rate(value: object, where: str, high: float = 1e18) -> float:
    """Units per second: a number, or bytes as ``12.3GB/s``. Raises DocumentError."""
    if isinstance(value, str) and value.rstrip("/s ")[-1:] in ("B", "b"):
        return number(size(value.replace("/s", ""), where), where, 1, high)
    return number(value, where, 1e-3, high)


def size(value: object, where: str, high: int = 1 << 50) -> int:
    """Bytes: a number, or text as ``16GB``. Raises DocumentError."""
    if isinstance(value, str) and len(value) <= _LONGEST:
        try:
            value = float(value) if "e" in value.lower() else parse_size(value)
        except (UsageError, ValueError):
            raise DocumentError(where, expected="bytes, as 16GB", got=short(value)) from None
    return int(number(value, where, 0, high))


def whole(value: object, where: str, low: int, high: int) -> int:
    """A whole number in a range. Raises DocumentError."""
    if type(value) is not int or not low <= value <= high:
        raise DocumentError(where, expected=f"a whole number, {low} to {high}", got=short(value))
    return value


def text(value: object, where: str, most: int = 200) -> str:
    """A text that is not too long. Raises DocumentError."""
    if not isinstance(value, str) or len(value) > most:
        raise DocumentError(where, expected=f"text of at most {most} characters", got=short(value))
    return value


def switch(value: object, where: str) -> bool:
    """True or false. Raises DocumentError."""
    if not isinstance(value, bool):
        raise DocumentError(where, expected="true or false", got=short(value))
    return value


def short(value: object) -> str:
    """What was found, for a message."""
    if isinstance(value, str | int | float | bool) or value is None:
        return repr(value)[:80]
    return type(value).__name__
