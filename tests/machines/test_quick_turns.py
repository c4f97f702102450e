"""Lanes get the interpreter soon, and a process its own setting back."""

from __future__ import annotations

import sys
import time

import pytest

from headrace.machines import quick_turns
from headrace.machines.threads import Threads


@pytest.fixture
def interval(monkeypatch):
    monkeypatch.setattr(quick_turns, "_open", 0)  # whatever other tests left open
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.004)
    yield 0.004
    sys.setswitchinterval(before)


def machine() -> Threads:
    return Threads({}, lambda buffer: None, time.perf_counter)


def test_the_last_machine_puts_back_what_was_before(interval):
    first, second = machine(), machine()
    assert sys.getswitchinterval() == pytest.approx(quick_turns.SECONDS, abs=2e-6)
    first.close()
    first.close()  # idempotent
    assert sys.getswitchinterval() == pytest.approx(quick_turns.SECONDS, abs=2e-6)
    second.close()
    assert sys.getswitchinterval() == pytest.approx(interval, abs=2e-6)


def test_a_shorter_interval_stays(interval):
    sys.setswitchinterval(1e-4)
    with machine():
        assert sys.getswitchinterval() == pytest.approx(1e-4, abs=2e-6)
    assert sys.getswitchinterval() == pytest.approx(1e-4, abs=2e-6)
