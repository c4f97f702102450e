"""Ctrl-C ends the command within two seconds, whatever it is doing.

Python raises KeyboardInterrupt between two bytecodes of the main thread; a long call into a
library can hold that back. So a daemon thread hears the signal as well and, should the
orderly way take too long, ends the process. Output lines are durable before they count, so
nothing is lost; the same command resumes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 130
GRACE_SECONDS = 1.7


def end_on_interrupt(
    grace_seconds: float = GRACE_SECONDS,
    leave: Callable[[int], object] = os._exit,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Exit with 130 at most ``grace_seconds`` after SIGINT, or at once at the second one.

    Call from the main thread, once per process.
    """
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    threading.Thread(
        target=_watch, args=(heard, grace_seconds, leave, sleep), name="interrupt", daemon=True
    ).start()


def leave_interrupted() -> None:
    """Exit with 130 now. All that is durable is on disk by then, and what the interpreter would
    still tear down (torch's modules, above all) takes a second."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_CODE)


def _watch(
    heard: int,
    grace_seconds: float,
    leave: Callable[[int], object],
    sleep: Callable[[float], None],
) -> None:
    def run_out() -> None:
        sleep(grace_seconds)
        leave(EXIT_CODE)

    _next_interrupt(heard)
    threading.Thread(target=run_out, daemon=True).start()
    _next_interrupt(heard)
    leave(EXIT_CODE)


def _next_interrupt(heard: int) -> None:
    while os.read(heard, 1) != bytes([signal.SIGINT]):
        pass
