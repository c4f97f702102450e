"""Faults that a text asks for, so that tests can make a whole process fail at a named point.

``output.fsync@3=kill, page.read@*=delay:0.05``: at the third passing of ``output.fsync`` the
process kills itself, and every read of a page is late. The points are those of ``specs.faults``.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from headrace.errors import UsageError
from headrace.specs.faults import POINTS, Faults, no_faults

_ENTRY = re.compile(r"(?P<point>[\w.]+)@(?P<turn>\d+|\*)=(?P<action>\w+)(:(?P<seconds>[\d.]+))?")

SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "hup": signal.SIGHUP,
    "stop": signal.SIGSTOP,
}
ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC}


class Fault(NamedTuple):
    """At the ``turn``-th passing of ``point`` (None: at each) this ``happens``."""

    point: str
    turn: int | None
    happens: Callable[[], None]


def faults_of(text: str | None) -> Faults:
    """The faults that ``text`` asks for. Raises UsageError."""
    return _Faults(list(_parsed(text))) if text else no_faults


class _Faults:
    """Counts passings, of any thread, and acts at their turn."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        with self._lock:
            self._passed[point] += 1
            turn = self._passed[point]
        for fault in self._faults:
            if fault.point == point and fault.turn in (None, turn):
                fault.happens()


def _parsed(text: str) -> Iterator[Fault]:
    for entry in text.replace(" ", "").split(","):
        match = _ENTRY.fullmatch(entry)
        action = _action(match["action"].lower(), match["seconds"]) if match else None
        if match is None or action is None or match["point"] not in POINTS:
            raise UsageError(
                "faults",
                expected="POINT@TURN=ACTION, ...; actions: "
                + ", ".join((*SIGNALS, *ERRORS, "delay:SECONDS"))
                + "; points: "
                + ", ".join(POINTS),
                got=entry[:80],
            )
        turn = None if match["turn"] == "*" else int(match["turn"])
        yield Fault(match["point"], turn, action)


def _action(name: str, seconds: str | None) -> Callable[[], None] | None:
    if name in SIGNALS:
        return lambda: os.kill(os.getpid(), SIGNALS[name])
    if name in ERRORS:
        return lambda: _fail(ERRORS[name])
    if name == "delay" and seconds:
        return lambda: time.sleep(float(seconds))
    return None


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))
