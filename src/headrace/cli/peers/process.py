"""One run of a contestant: its output, how it ended, and the most memory its processes took."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep

LOOK_SECONDS = 0.25
"""Between looks at the processes: rare enough to cost the contestant nothing."""


@dataclass(frozen=True)
class Ended:
    """``code`` is the exit code, negative for a signal, None when time ran out. ``peak_rss``
    counts resident bytes of the process and all below it, mapped files included."""

    code: int | None
    output: str
    errors: str
    peak_rss: int


def run_process(command: Sequence[str], timeout: float, scratch: str | None = None) -> Ended:
    """Run ``command`` in a group of its own, which is killed at the end of ``timeout`` seconds.
    With ``scratch``, its TMPDIR is a new folder there, removed afterwards. Raises OSError when it
    cannot be started."""
    with (
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        _temporary(scratch) as environment,
    ):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            code, peak = _watch(process, monotonic() + timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for file in (output, errors):
            file.seek(0)
        return Ended(code, _tail(output.read()), _tail(errors.read()), peak)


@contextmanager
def _temporary(scratch: str | None) -> Iterator[dict[str, str]]:
    if scratch is None:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=scratch) as folder:
        yield {**os.environ, "TMPDIR": folder}


def _watch(process: subprocess.Popen[bytes], deadline: float) -> tuple[int | None, int]:
    peak = 0
    # A process starts with its parent's peak as its own: up to that, looking must do.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            own = usage.ru_maxrss * 1024 if usage.ru_maxrss > inherited else 0
            return process.returncode, max(peak, own)
        peak = max(peak, sum(_rss(p) for p in _tree(process.pid)))
        if monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None, peak
        sleep(LOOK_SECONDS)


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    yield from _tree(int(child))


def _rss(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def _tail(text: str, most: int = 1 << 20) -> str:
    return text[-most:]
