"""``headrace verify RUN``: hold a finished run against its prediction."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options


def verify(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Output of run-batch, or the folder it is in.")
    ],
    update: Annotated[
        bool,
        typer.Option("--update", help="Put what the run showed into this machine's profile."),
    ] = False,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Predicted against measured: job time, every lane, every operation; error in percent."""
    import os

    from headrace.cli.output import console, emit_json
    from headrace.engine.profiles import keep_profile, profile_path, read_profile
    from headrace.engine.runs import find_run, read_run
    from headrace.errors import UsageError
    from headrace.planner.verify import updated

    found = read_run(find_run(run))
    rows = found.compared()
    kept: Path | None = None
    if update:
        kept = profile_path(os.environ)
        profile = read_profile(kept)
        if profile is None:
            raise UsageError("no profile to update", got=str(kept), hint="headrace calibrate")
        keep_profile(kept, updated(profile, found))
    if json:
        compared = [{**row._asdict(), "error": row.error} for row in rows]
        emit_json({"compared": compared, "updated": None if kept is None else str(kept)})
        return
    from rich.table import Table

    from headrace.specs.units import format_seconds

    table = Table("what", "", "predicted", "measured", "error", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        times = (format_seconds(row.predicted), format_seconds(row.measured))
        error = "-" if row.error is None else f"{row.error * 100:+.1f} %"
        table.add_row(row.kind, row.name, *times, error)
    console().print(table)
    if kept is not None:
        print(f"profile updated: {kept}")
