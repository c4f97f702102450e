"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import headrace


def start(*arguments: object) -> subprocess.Popen[str]:
    """``headrace ARGUMENTS`` in a fresh interpreter with one thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    own = {"PYTHONPATH": str(Path(headrace.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", *map(str, arguments)],
        env={**clean, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
