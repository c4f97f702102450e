"""Ctrl-C, SIGTERM and SIGHUP end the command within two seconds, whatever it is doing.

The orderly way is a KeyboardInterrupt in the main thread. Python raises it between any two
bytecodes, so also between taking a lock and entering the block that gives it back: while the
engine runs, signals are therefore held, and taken where nothing is half done (``held``). A long
call into a library can hold back either way, so a daemon thread hears the signal as well and,
should the orderly way take too long, ends the process. Output lines are durable before they
count, so nothing is lost; the same command resumes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end. One that was ignored when we began (``nohup``) stays ignored."""

GRACE_SECONDS = 1.4
SAID = b"headrace: interrupted; what was finished is kept, the same command goes on\n"


class Listener:
    """Hears SIGNALS. ``code`` is the exit code that the first one asks for: 128 + its number."""

    def __init__(self) -> None:
        self.code = 128 + signal.SIGINT

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.code = 128 + number
        raise KeyboardInterrupt


def end_on_interrupt(
    grace_seconds: float = GRACE_SECONDS,
    leave: Callable[[int], object] = os._exit,
    sleep: Callable[[float], None] = time.sleep,
) -> Listener:
    """Exit at most ``grace_seconds`` after the first of SIGNALS, or at once at the second one.

    Call from the main thread, once per process.
    """
    listener = Listener()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, listener)
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    threading.Thread(
        target=_watch, args=(heard, grace_seconds, leave, sleep), name="interrupt", daemon=True
    ).start()
    return listener


@contextlib.contextmanager
def held() -> Iterator[Callable[[], None]]:
    """While open, signals wait until the function given is called, which then raises what they
    would have raised. One that came after its last call is raised at the end."""
    waiting: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in SIGNALS if callable(signal.getsignal(n))}

    def raise_waiting() -> None:
        if waiting:
            number = waiting.pop(0)
            before[number](number, None)

    for number in before:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield raise_waiting
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise_waiting()


def leave_interrupted(code: int) -> None:
    """Exit now. All that is durable is on disk by then, and what the interpreter would still
    tear down (torch's modules, above all) takes a second."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, SAID)
    os._exit(code)


def _watch(
    heard: int,
    grace_seconds: float,
    leave: Callable[[int], object],
    sleep: Callable[[float], None],
) -> None:
    def run_out() -> None:
        sleep(grace_seconds)
        with contextlib.suppress(OSError):
            os.write(2, SAID)
        leave(code)

    code = 128 + _next_signal(heard)
    threading.Thread(target=run_out, daemon=True).start()
    _next_signal(heard)
    leave(code)


def _next_signal(heard: int) -> int:
    while (number := os.read(heard, 1)[0]) not in SIGNALS:
        pass
    return number
