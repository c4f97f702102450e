"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import headrace


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``headrace ARGUMENTS`` in a fresh interpreter with one thread; gone when the block ends."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    own = {"PYTHONPATH": str(Path(headrace.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *map(str, arguments)],
        env={**clean, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
