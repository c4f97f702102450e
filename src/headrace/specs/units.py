"""Sizes and durations at the edge of the program: parse what people type, print what they read.

Inside, everything is SI: bytes, seconds, FLOPs as plain numbers.
"""

from __future__ import annotations

import re

from headrace.errors import UsageError

_FACTORS = {
    "": 1,
    "B": 1,
    "K": 1000,
    "KB": 1000,
    "M": 1000**2,
    "MB": 1000**2,
    "G": 1000**3,
    "GB": 1000**3,
    "T": 1000**4,
    "TB": 1000**4,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
    "TIB": 1024**4,
}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes from ``"8GiB"``, ``"500MB"``, ``"600000000"`` or an int. Raises UsageError."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError("not a size", expected="a number and a unit, as 8GiB or 500MB", got=text)
    return round(float(match[1]) * factor)


def format_bytes(count: float) -> str:
    """``1.4 GB``, ``600 MB``: SI units, three significant digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def size_argument(count: int) -> str:
    """A size to type, as ``1.46GB``: never less than ``count``, and from 1 MB on hardly more."""
    unit, factor = ("GB", 1000**3) if count >= 1000**3 else ("MB", 1000**2)
    digits = max(0, 3 - len(str(count // factor)))
    step = factor // 10**digits
    return f"{-(-count // step) * step / factor:.{digits}f}{unit}"


def format_seconds(seconds: float) -> str:
    """``840 ms``, ``12.3 s``, ``4 min 10 s``, ``3 h 20 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
