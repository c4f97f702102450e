"""``headrace quantize MODEL -o DIR``: the same model with integer weights."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options
from headrace.errors import UsageError


def quantize(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    weights: Annotated[str, typer.Option("--weights", metavar="int8|int4")],
    group: Annotated[
        int | None,
        typer.Option(
            "--group",
            metavar="32|64|128",
            help="Columns that share a scale. Default: a whole row of int8, the most of these "
            "that divide a row of int4.",
        ),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="A zero point beside each scale.")
    ] = False,
    search: Annotated[
        bool | None,
        typer.Option(
            "--search/--no-search",
            help="Look for the scale of least squared error. Default: for int4.",
        ),
    ] = None,
    lm_head: Annotated[
        bool, typer.Option("--lm-head", help="Make integers of the output head as well.")
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Compare perplexity before and after."),
    ] = True,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Text to compare on. Default: a bundled one."),
    ] = None,
    revision: options.Revision = None,
    memory: options.Memory = None,
    shard_size: Annotated[str, typer.Option("--shard-size", metavar="SIZE")] = "256MB",
    threads: options.Threads = None,
    kernels: options.Kernels = "auto",
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Write MODEL with its matrices as integers, as compressed-tensors checkpoints store them.

    Interrupted, the same command goes on. Then says what was lost: the error of each layer's
    weights, and the change of perplexity on a text.
    """
    from headrace.cli.output import console, emit_json
    from headrace.cli.quantize_job import Settings, run_quantize
    from headrace.cli.quantize_view import print_report
    from headrace.specs.units import parse_size

    if text is not None and not text.is_file():
        raise UsageError("no such text file", got=str(text))
    if text is not None and not evaluate:
        raise UsageError("--text with --no-evaluate")
    report = run_quantize(
        Settings(
            model=model,
            revision=revision,
            output=output,
            weights=weights,
            group=group,
            symmetric=not asymmetric,
            search=search,
            head=lm_head,
            text=text,
            evaluate=evaluate,
            memory=None if memory is None else parse_size(memory),
            shard_bytes=parse_size(shard_size),
            threads=threads,
            kernels=kernels,
        ),
        console(stderr=True),
    )
    if json:
        emit_json(report)
    else:
        print_report(report, console())
