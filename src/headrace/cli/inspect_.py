"""``headrace inspect MODEL``: what a model is and needs, from headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import options

if TYPE_CHECKING:
    from headrace.cli.inspection import Inspection


def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a registry name.")],
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show architecture, parameters, bytes by role, pages, KV and memory needs of a model."""
    from headrace.cli.inspection import print_inspection
    from headrace.cli.output import console, emit_json

    found = inspection_of(model)
    if json:
        emit_json(found.to_dict())
    else:
        print_inspection(found, console())


def inspection_of(name: str) -> Inspection:
    """Gather what is said of a model. Reads headers only; raises ModelError."""
    from headrace.cli.budgets import budgets_of
    from headrace.cli.inspection import Inspection
    from headrace.cli.model_source import find_model

    source = find_model(name)
    budgets = budgets_of(source.model)
    if source.checkpoint is None:
        size = role_total(source.model)
        return Inspection(source.name, "registry", source.model, size, None, budgets)
    checkpoint = source.checkpoint
    return Inspection(
        source.name,
        "local folder",
        source.model,
        checkpoint.total_bytes,
        len(checkpoint.files),
        budgets,
    )


def role_total(model: object) -> int:
    """Bytes of all weights of a model."""
    from headrace.cli.inspection import role_bytes

    return sum(role_bytes(model).values())  # type: ignore[arg-type]
