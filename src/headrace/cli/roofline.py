"""``headrace roofline MODEL``: what a machine's levels let each operation reach, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import options
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.hardware_source import Machine
    from headrace.cli.model_source import Source
    from headrace.specs.policy import Policy


def roofline(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a registry name.")],
    hardware: options.Hardware = "l4",
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
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="auto|none|FILE",
            help="Whose operating point to mark: the plan for 1000 such prompts, or one in a file.",
        ),
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A plot: .svg or .png."),
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show roofs, turning points, and the operations of a layer at their intensities."""
    from headrace.cli.hardware_source import find_machine
    from headrace.cli.model_source import find_model
    from headrace.cli.output import console, emit_json
    from headrace.cli.roofline_points import chart_of, with_plan

    source, machine = find_model(model), find_machine(hardware)
    chart = chart_of(
        source.model, machine.hardware, batch or [1024], micro_batch, prompt_len, kv_cache_dtype
    )
    policy = policy_of(plan, source, machine, prompt_len, kv_cache_dtype)
    if policy is not None:
        chart = with_plan(chart, source.model, policy, prompt_len)
    if output is not None:
        from headrace.cli.roofline_plot import write_plot

        write_plot(chart, f"{model} on {hardware}", output)
    if json:
        emit_json(chart.to_dict())
    else:
        from headrace.cli.roofline_view import print_chart

        print_chart(chart, f"{model} on {hardware}", console())


def policy_of(
    plan: str, source: Source, machine: Machine, prompt_len: int, kv_dtype: str
) -> Policy | None:
    """The policy whose operating point is marked; None for ``none``, or, with a warning, where no
    plan works. Raises DocumentError for a file that is no plan for this model."""
    if plan == "none":
        return None
    if plan != "auto":
        from headrace.cli.documents import read_document
        from headrace.planner.plan_file import read_plan

        asked = read_plan(read_document(Path(plan)), Path(plan).name)
        asked.check_model(source.model, source.pages, Path(plan).name)
        return asked.policy
    from headrace.cli.output import warn
    from headrace.cli.planning import GEN_LEN, Request, situation
    from headrace.planner.search import best_plan
    from headrace.specs.workload import Workload

    job = Workload.uniform(1000, prompt_len, GEN_LEN)
    try:
        at, _ = situation(Request("", overrides={"kv_dtype": kv_dtype}), source, machine, job)
        return best_plan(at).policy
    except HeadraceError as refusal:
        warn(f"no operating point: {refusal.message}")
        return None
