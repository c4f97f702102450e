"""``headrace inspect MODEL``: what a model is and needs, from headers alone."""

from typing import Annotated

import typer

from headrace.cli import options


def inspect(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, a registry name, or a repo id.")
    ],
    check_weights: Annotated[
        bool,
        typer.Option(
            "--check-weights",
            help="Read all weights and list tensors that hold NaN or infinity (then exit 1).",
        ),
    ] = False,
    revision: options.Revision = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show architecture, parameters, bytes by role, pages, KV and memory needs of a model."""
    from headrace.cli.inspection import inspect_model
    from headrace.cli.output import console, emit_json

    found = inspect_model(model, check_weights, revision)
    if json:
        emit_json(found.to_dict())
    else:
        from headrace.cli.inspection_view import print_inspection

        print_inspection(found, console())
    if found.nonfinite:
        raise typer.Exit(1)
