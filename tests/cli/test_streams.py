"""What is said to a person never costs a job its results."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from headrace.cli.output import emit_json
from headrace.cli.streams import Forgiving
from headrace.errors import StorageError
from tests.cli.helpers import SOURCE


class Broken(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_what_cannot_be_said_is_lost_and_no_more():
    stream = Forgiving(Broken(BrokenPipeError()))
    print("anything", file=stream, flush=True)
    assert stream.isatty() is False


def test_a_result_that_cannot_be_written_is_an_error():
    with pytest.raises(StorageError, match="No space"):
        emit_json({}, Broken(OSError(28, "No space left on device")))
    with pytest.raises(BrokenPipeError):
        emit_json({}, Broken(BrokenPipeError()))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--version >&- 2>&- <&-", 0),
        ("inspect olmoe-1b-7b --json > /dev/full", 1),
        ("inspect olmoe-1b-7b --json | true", 1),
        ("inspect nothing 2>&1 | true", 2),
    ],
)
def test_closed_full_and_broken_streams_print_no_traceback(tmp_path, line, code):
    line = f"{sys.executable} -m headrace {line}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
