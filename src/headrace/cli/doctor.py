"""``headrace doctor``: what of this machine costs speed or stops a run, and what to do."""

import time
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options


def doctor(
    disk: Annotated[
        Path, typer.Option("--disk", metavar="FOLDER", help="A folder on the disk to measure.")
    ] = Path(),
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Examine memory, limits, cores, instruction sets, links and disk; a remedy for each fault.

    Writes 100 MB to the folder and removes them. Exit code 1 when something stops runs.
    """
    from headrace.cli.checkup import Patient, Verdict, examine
    from headrace.cli.output import console, emit_json
    from headrace.errors import UsageError

    if not disk.is_dir():
        raise UsageError("--disk", expected="a folder", got=str(disk))
    findings = list(examine(Patient(disk, time.perf_counter)))
    if json:
        emit_json({"findings": [vars(finding) for finding in findings]})
    else:
        from rich.table import Table

        table = Table("what", "found", "verdict", "remedy", box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row(finding.name, finding.found, finding.verdict.value, finding.remedy)
        console().print(table)
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(1)
