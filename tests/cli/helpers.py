"""Running the command line in this process, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import headrace

SOURCE = str(Path(headrace.__file__).parents[1])


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``headrace ARGUMENTS`` in a fresh interpreter."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        env={**clean, "PYTHONPATH": SOURCE, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
