"""Standard output and error as they may be: closed, a pipe that nobody reads, a lost terminal.

What is said to a person must never cost a job its results.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


def forgiving_streams() -> None:
    """Give closed standard streams a place (so that no file of ours gets their number), and let
    stderr swallow what cannot be written. Call once, before anything is said."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = _nowhere(1)
    sys.stderr = Forgiving(_nowhere(2) if sys.stderr is None else sys.stderr)


class Forgiving:
    """A text stream whose writes never fail: what cannot be said is not said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose, ``text``."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Push out, or lose, what was written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _nowhere(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False)
