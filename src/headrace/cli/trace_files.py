"""The picture beside a trace file."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.cli.timeline import Bar, lanes_of_chrome, timeline_svg, window
from headrace.errors import UsageError

SHOWN_SWEEPS = 3
"""About as many sweeps as a picture of this width can show."""


def check_trace(trace: Path | None, *others: Path) -> None:
    """Refuse before the run a trace that could not be written after it, or that would replace one
    of the ``others``. Raises UsageError."""
    if trace is None:
        return
    if trace.is_dir() or not trace.absolute().parent.is_dir():
        raise UsageError("--trace must be a file in an existing folder", got=str(trace))
    if any(trace.resolve() == other.resolve() for other in others):
        raise UsageError("--trace would replace a file of the job", got=str(trace))


def draw_trace(trace: Path, title: str) -> Path:
    """Write ``<trace>.svg``: a few sweeps from the middle, where the pipeline is full.

    Raises OSError, or ValueError when the trace is not whole."""
    planned, measured = lanes_of_chrome(json.loads(trace.read_text(encoding="utf-8")))
    picture = trace.with_name(trace.name + ".svg")
    halves = [middle(lanes) for lanes in (planned, measured)]
    picture.write_text(timeline_svg(*halves, title=title), encoding="utf-8")
    return picture


def middle(lanes: dict[str, list[Bar]], sweeps: int = SHOWN_SWEEPS) -> dict[str, list[Bar]]:
    """``sweeps`` consecutive sweeps around the middle of the run, from end to end.

    All of it when the run has hardly more than that.
    """
    ends: dict[int, float] = {}
    for bar in (bar for bars in lanes.values() for bar in bars):
        ends[bar.sweep] = max(bar.end, ends.get(bar.sweep, 0.0))
    moments = [ends[sweep] for sweep in sorted(ends)]
    if len(moments) <= sweeps + 1:
        return lanes
    first = (len(moments) - sweeps) // 2
    return window(lanes, moments[first - 1], moments[first - 1 + sweeps])
