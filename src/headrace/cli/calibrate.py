"""``headrace calibrate``: measure this machine once, for all plans made on it."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options

STOCK = "cpu-2core"
"""The machine of the registry that ours is compared with."""


def calibrate(
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, metavar="S", help="About how long to measure.")
    ] = 60.0,
    path: Annotated[
        Path,
        typer.Option(
            "--path",
            metavar="DIR",
            help="A checkpoint, or a folder on the disk to measure: 1.5 GB are written to it and "
            "deleted again.",
        ),
    ] = Path(),
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Measure this machine as runs use it, and keep a profile that plans start from.

    The profile goes to XDG_CACHE_HOME/headrace/profile.json. Runs that a profile of before had
    been compared with are remembered.
    """
    import os
    import time

    from headrace.cli.calibration import (
        calibrate_machine,
        difference,
        profile_tables,
        with_stock_link,
    )
    from headrace.cli.output import console, emit_json, warn
    from headrace.engine.link import accelerator_here
    from headrace.engine.profiles import dated, keep_profile, profile_path, read_profile
    from headrace.errors import HeadraceError, UsageError
    from headrace.specs.registry import known_hardware

    if not path.is_dir():
        raise UsageError("--path", expected="a folder", got=str(path))
    said, accelerator = console(stderr=True), accelerator_here()
    stock, card = with_stock_link(known_hardware(STOCK).hardware, accelerator)
    file = profile_path(os.environ)
    with said.status("measuring") as status:
        profile = calibrate_machine(
            path, seconds, time.perf_counter, dated(time.time()), status.update, accelerator
        )
    try:
        before = read_profile(file)
        profile = profile.with_residuals(before.residuals if before else ())
    except UsageError as error:
        warn(f"{error.message}; it is replaced")
    kept: Path | None = file
    try:
        keep_profile(file, profile)
    except HeadraceError as error:
        kept = None
        warn(f"{error.message} ({error.got}): {error.hint}")
    if json:
        where = None if kept is None else str(kept)
        result = {"kept": where, "stock": STOCK, "difference": difference(profile, stock)}
        link = None if accelerator is None else {"accelerator": accelerator.name, "stock": card}
        emit_json({**result, "link": link, "profile": profile.to_dict()})
        return
    for table in profile_tables(profile, stock):
        console().print(table)
    if kept is not None:
        print(f"kept in {kept}")
