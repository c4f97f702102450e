"""Faults from text: at the point and turn that it names, and nowhere else."""

from __future__ import annotations

import signal

import pytest

from headrace.cli.faults import faults_of
from headrace.cli.main import run
from headrace.errors import UsageError
from headrace.specs.faults import no_faults


def test_nothing_fails_unless_asked():
    assert faults_of(None) is faults_of("") is no_faults


def test_an_error_comes_at_its_turn_only():
    faults = faults_of("output.fsync@2=eio, page.read@*=enospc")
    faults("output.fsync")
    faults("output.write")
    with pytest.raises(OSError, match="Input/output error"):
        faults("output.fsync")
    faults("output.fsync")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            faults("page.read")


def test_a_signal_goes_to_the_process_itself():
    with pytest.raises(KeyboardInterrupt):
        faults_of("sweep.commit@1=int")("sweep.commit")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "text", ["output.fsync", "nowhere@1=kill", "page.read@x=kill", "page.read@1=dance", ","]
)
def test_what_cannot_be_honoured_is_refused(text):
    with pytest.raises(UsageError, match="POINT@TURN=ACTION"):
        faults_of(text)


def test_delay_needs_its_seconds():
    with pytest.raises(UsageError):
        faults_of("page.read@1=delay")
    faults_of("page.read@1=delay:0.0001")("page.read")


def test_the_option_is_for_tests_and_not_shown(capsys):
    assert run(["run-batch", "--help"]) == 0
    assert "--faults" not in capsys.readouterr().out
