"""The record that a batch run leaves beside its output: what it did beside what was predicted.

``results.jsonl`` has ``results.jsonl.run.json``: {"format", "summary", "shape"}. A later run of the
same output replaces it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.engine.durable import write_durably
from headrace.engine.summary import RunSummary
from headrace.errors import UsageError
from headrace.planner.profile import ShapeCurves, shape_from
from headrace.planner.verify import Run, run_from

FORMAT = 3
SUFFIX = ".run.json"
MOST_BYTES = 16 << 20


def run_path(output: Path) -> Path:
    """Where the record of the run that wrote ``output`` is."""
    return output.with_name(output.name + SUFFIX)


def keep_run(output: Path, summary: RunSummary, shape: ShapeCurves) -> None:
    """Store it. Raises OSError or StorageError where that is not possible."""
    content = {"format": FORMAT, "summary": summary.to_dict(), "shape": shape.to_dict()}
    write_durably(run_path(output), json.dumps(content, indent=1).encode() + b"\n")


def find_run(path: Path) -> Path:
    """The record that ``path`` means: itself, that of an output file, or the only one of a folder.
    Raises UsageError."""
    if path.is_dir():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if len(found) != 1:
            raise UsageError(
                f"runs in {path}",
                expected="one",
                got=", ".join(f.name for f in found) or "none",
                hint="name the output file of one",
            )
        return found[0]
    if path.name.endswith(SUFFIX):
        return path
    return run_path(path)


def read_run(path: Path) -> Run:
    """The run recorded at ``path``. Raises UsageError when there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        content: Any = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("expected an object")
    except OSError as error:
        raise UsageError(
            "no record of that run",
            expected=str(path),
            got=error.strerror,
            hint="run-batch writes it when it ends",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path.name} is damaged", got=str(error)[:200], hint="run the job again"
        ) from error
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{path.name} is of another version",
            expected=f"format {FORMAT}",
            got=content.get("format"),
            hint="run the job again",
        )
    return run_from(content, shape_from)
