"""``headrace roofline MODEL``: what a machine's levels let each operation reach, and where."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options


def roofline(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a registry name.")],
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="A machine of the registry.")
    ] = "l4",
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Rows of a sweep; repeat for several. Default 1024."),
    ] = None,
    micro_batch: Annotated[
        int, typer.Option("--micro-batch", min=1, help="Rows of a kernel, at most.")
    ] = 128,
    prompt_len: Annotated[
        int, typer.Option("--prompt-len", min=1, help="Tokens that attention looks at.")
    ] = 512,
    kv_cache_dtype: options.KvCacheDtype = "f16",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A plot: .svg or .png."),
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show roofs, turning points, and the operations of a layer at their intensities."""
    from headrace.cli.model_source import find_model
    from headrace.cli.output import console, emit_json
    from headrace.cli.roofline_points import chart_of
    from headrace.specs.registry import known_hardware

    spec = find_model(model).model
    machine = known_hardware(hardware).hardware
    chart = chart_of(spec, machine, batch or [1024], micro_batch, prompt_len, kv_cache_dtype)
    if output is not None:
        from headrace.cli.roofline_plot import write_plot

        write_plot(chart, f"{model} on {hardware}", output)
    if json:
        emit_json(chart.to_dict())
    else:
        from headrace.cli.roofline_view import print_chart

        print_chart(chart, f"{model} on {hardware}", console())
