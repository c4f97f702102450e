"""Ctrl-C ends the process in time even when the main thread does not listen."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from time import perf_counter

import pytest

from headrace.cli import main
from headrace.cli.interrupt import SIGNALS, Listener, end_on_interrupt, held
from tests.cli.helpers import SOURCE

# Python-level handlers never run here: the main thread stays inside one C call.
DEAF = "import ctypes; print('ready', flush=True); ctypes.CDLL(None).sleep(30)"
POLITE = "import time; print('ready', flush=True); time.sleep(30)"
STUBBORN = """
import time
print('ready', flush=True)
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        time.sleep(1)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize("body", [POLITE, STUBBORN, DEAF])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_exits_by_the_signal_s_number_within_two_seconds(body, number):
    if body is not POLITE and number is signal.SIGHUP:
        pytest.skip("as SIGTERM")
    seconds, code = _interrupt(body, number, times=1)
    assert code == 128 + number
    assert seconds < 2.5


def test_second_interrupt_exits_at_once():
    seconds, code = _interrupt(STUBBORN, signal.SIGINT, times=2)
    assert code == 130
    assert seconds < 1.4


def _interrupt(body: str, number: int, times: int) -> tuple[float, int]:
    program = (
        "import sys\nfrom headrace.cli import main\n"
        f"def job(arguments):\n    exec({body!r}, {{}})\n    return 0\n"
        "main.run = job\nmain.main([])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    began = perf_counter()
    for i in range(times):
        if i:
            _settle(process)
        process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert "Traceback" not in error
    assert times > 1 or "interrupted" in error
    return perf_counter() - began, process.returncode


def _settle(process) -> None:
    """Two signals sent back to back arrive as one; leave a moment between them."""
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return


def test_patience_ends_once_and_a_second_interrupt_ends_it_at_once():
    left, slept = threading.Event(), []
    before = signal.set_wakeup_fd(-1)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        end_on_interrupt(9.0, leave=lambda code: left.set(), sleep=slept.append)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert left.wait(5)
        assert slept == [9.0]
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_keyboard_interrupt_becomes_the_code_that_was_heard(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "forgiving_streams", lambda: None)
    monkeypatch.setattr(main, "end_on_interrupt", Listener)
    monkeypatch.setattr(main, "run", interrupted)
    monkeypatch.setattr(main, "leave_interrupted", sys.exit)
    with pytest.raises(SystemExit) as exit_:
        main.main([])
    assert exit_.value.code == 130


def test_a_signal_that_is_held_is_raised_where_it_is_asked_for():
    with held() as raise_waiting:
        raise_waiting()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_waiting()
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_ignored_by_nohup_stays_ignored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        listener = end_on_interrupt()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is listener
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
