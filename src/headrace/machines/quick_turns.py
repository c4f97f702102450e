"""How soon a thread that wants the interpreter gets it, while lanes run."""

from __future__ import annotations

import sys
import threading

SECONDS = 0.0005
"""A lane needs the interpreter a few times per task, for microseconds. Python lets whoever has it
go on for 5 ms; beside a thread that computes in Python (one that records a sweep of 400 tasks does
so for 15 ms) the first tasks of the next sweep waited that long each time."""

_lock = threading.Lock()
_open = 0
_before = 0.0


def begin() -> None:
    """From now on SECONDS at most, until as many have ended as began."""
    global _open, _before
    with _lock:
        if not _open:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(SECONDS, _before))
        _open += 1


def end() -> None:
    """The last one puts back what was before."""
    global _open
    with _lock:
        _open -= 1
        if not _open:
            sys.setswitchinterval(_before)
