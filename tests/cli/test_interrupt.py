"""Ctrl-C ends the process in time even when the main thread does not listen."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from time import perf_counter

import pytest

from headrace.cli import main
from headrace.cli.interrupt import end_on_interrupt
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
def test_exits_130_within_two_seconds(body):
    seconds, code = _interrupt(body, signals=1)
    assert code == 130
    assert seconds < 2.5


def test_second_interrupt_exits_at_once():
    seconds, code = _interrupt(STUBBORN, signals=2)
    assert code == 130
    assert seconds < 1.5


def _interrupt(body: str, signals: int) -> tuple[float, int]:
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
    for i in range(signals):
        if i:
            _settle(process)
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert "Traceback" not in error
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
    try:
        end_on_interrupt(9.0, leave=lambda code: left.set(), sleep=slept.append)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert left.wait(5)
        assert slept == [9.0]
    finally:
        signal.set_wakeup_fd(before)


def test_keyboard_interrupt_becomes_exit_code_130(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "end_on_interrupt", lambda: None)
    monkeypatch.setattr(main, "run", interrupted)
    monkeypatch.setattr(main, "leave_interrupted", lambda: sys.exit(130))
    with pytest.raises(SystemExit) as exit_:
        main.main([])
    assert exit_.value.code == 130
    assert "interrupted" in capsys.readouterr().err
