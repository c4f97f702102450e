"""The rows as a table for a terminal, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from headrace.cli.kernelbench.case import Row
from headrace.cli.kernelbench.roofs import Roofs

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("kernel", "shape", "format", "time", "GB/s", "GFLOP/s", "roof", "of it", "torch", "way")


def table(rows: Sequence[Row]) -> Table:
    """For a terminal. ``torch`` is torch's best time over ours."""
    from rich.table import Table

    made = Table(*COLUMNS, box=None)
    for column in made.columns[3:6]:
        column.justify = "right"
    for row in rows:
        made.add_row(*cells(row))
    return made


def markdown(rows: Sequence[Row], heading: str) -> str:
    """A Markdown table under ``heading``."""
    lines = [heading, "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join([*lines, *(_line(cells(row)) for row in rows)])


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure in full, keys as in JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0].to_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue().rstrip("\n")


def cells(row: Row) -> list[str]:
    """One row in a reader's units."""
    return [
        row.kernel,
        row.shape,
        row.format,
        _time(row.seconds),
        f"{row.gb_per_s:.1f}",
        f"{row.gflop_per_s:.0f}" if row.gflop_per_s else "",
        row.roof,
        f"{row.percent_of_roof:.0f} %",
        "" if row.torch_ratio is None else f"{row.torch_ratio:.2f}x",
        row.torch_way or "",
    ]


def roofs_line(roofs: Roofs, threads: int) -> str:
    """The roofs in a sentence."""
    rates = ((n, r) for n, r in asdict(roofs).items() if r)
    said = (
        f"{name} {rate / 1e9:.1f} {'GB/s' if name in ('dram', 'cache', 'disk') else 'GFLOP/s'}"
        for name, rate in rates
    )
    return f"roofs on {threads} threads: {', '.join(said)}"


def versions_line() -> str:
    """What was measured with."""
    import torch

    from headrace import __version__

    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"headrace {__version__}, torch {torch.__version__} ({capability}), "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"
