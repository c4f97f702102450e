"""``headrace``: the commands, and the habits that all of them share."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from headrace import __version__
from headrace.cli import (
    bench,
    calibrate,
    doctor,
    generate,
    inspect_,
    plan,
    quantize,
    roofline,
    run_batch,
    simulate,
    verify,
)
from headrace.cli.interrupt import end_on_interrupt, leave_interrupted
from headrace.cli.output import discard_results, flush_results, show_error, warn
from headrace.cli.settings import bind_environment, unknown_variables
from headrace.cli.startup import Command, Group
from headrace.cli.streams import forgiving_streams
from headrace.errors import HeadraceError, StorageError

HELP = """Run Mixture-of-Experts models larger than memory, and say beforehand how fast.

Any option may also come from the environment (--max-tokens as HEADRACE_MAX_TOKENS) or from a
YAML file (--config). Command line > environment > file > default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, the error's own code, 2 for usage, 130 for Ctrl-C (143
    for SIGTERM, 129 for SIGHUP)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    forgiving_streams()
    listener = end_on_interrupt()
    interrupted = 128 + signal.SIGINT
    try:
        code = run(arguments)
        flush_results()
    except KeyboardInterrupt:
        code = interrupted
    except BrokenPipeError:  # the reader of a pipe has gone, as in `headrace inspect M | head`
        discard_results()
        code = 1
    except StorageError as error:  # nor does a full disk take them
        discard_results()
        show_error(error)
        code = error.exit_code
    if code == interrupted:
        leave_interrupted(listener.code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code. Refusals are printed, not raised."""
    command = make_command()
    for variable in unknown_variables(command, os.environ):
        warn(f"no option is called {variable}; the variable is ignored")
    try:
        command(list(arguments), prog_name="headrace")
    except HeadraceError as error:
        show_error(error, as_json=_json(arguments), verbose=_verbose(arguments))
        return error.exit_code
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def make_command() -> Any:
    """The click command tree, every option bound to its HEADRACE_* variable."""
    command = get_command(make_app())
    bind_environment(command)
    return command


def make_app() -> typer.Typer:
    """The Typer application with all commands."""
    app = _typer(help=HELP)
    app.callback()(_root)
    app.command("doctor", cls=Command)(doctor.doctor)
    app.command("calibrate", cls=Command)(calibrate.calibrate)
    app.command("verify", cls=Command)(verify.verify)
    app.command("inspect", cls=Command)(inspect_.inspect)
    app.command("plan", cls=Command)(plan.plan)
    app.command("generate", cls=Command)(generate.generate)
    app.command("roofline", cls=Command)(roofline.roofline)
    app.command("simulate", cls=Command)(simulate.simulate)
    app.command("run-batch", cls=Command)(run_batch.run_batch)
    app.command("quantize", cls=Command)(quantize.quantize)
    benches = _typer(help="Measure throughput and overhead; make checkpoints to measure with.")
    benches.command("throughput", cls=Command)(bench.throughput)
    benches.command("make-checkpoint", cls=Command)(bench.make_checkpoint)
    benches.command("schedules", cls=Command)(bench.schedules)
    benches.command("kernels", cls=Command)(bench.kernels)
    benches.command("peers", cls=Command)(bench.peers)
    benches.command("replay", cls=Command)(bench.replay)
    benches.command("prediction", cls=Command)(bench.prediction)
    app.add_typer(benches, name="bench")
    return app


def _typer(help: str) -> typer.Typer:
    return typer.Typer(
        help=help,
        cls=Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on)),
    ] = False,
) -> None:
    pass


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


def _json(arguments: Sequence[str]) -> bool:
    variable = os.environ.get("HEADRACE_JSON", "").strip().lower()
    return "--json" in arguments or variable in ("1", "true", "t", "yes", "y", "on")


def _verbose(arguments: Sequence[str]) -> bool:
    return "--verbose" in arguments or any(a.startswith("-v") for a in arguments)
