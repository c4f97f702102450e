"""``headrace plan MODEL``: with what policy a job runs on a machine, how long it takes, and why."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headrace import __version__
from headrace.cli import options

JOB, MACHINE = "The job", "The machine"


def plan(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder, a registry name, or a repo id (not loaded).")
    ],
    hardware: options.Hardware = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Host memory for weights + KV + activations. Default: 0.9 x what there is.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            "--device-memory",
            metavar="SIZE",
            help="Memory of the accelerator. Default: all of it.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="The job: a batch file.", rich_help_panel=JOB),
    ] = None,
    prompt_len: Annotated[
        str | None,
        typer.Option(
            "--prompt-len",
            metavar=options.TOKENS,
            help="Or: tokens a prompt, a range as 32-512 is drawn from. 512.",
            rich_help_panel=JOB,
        ),
    ] = None,
    gen_len: Annotated[
        str | None,
        typer.Option(
            "--gen-len",
            metavar=options.TOKENS,
            help="Tokens an answer, or a range. 128.",
            rich_help_panel=JOB,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="How many. 1000.", rich_help_panel=JOB),
    ] = None,
    seed: options.Seed = 0,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            min=1,
            help="With --input: output limit of a line that says nothing.",
            rich_help_panel=JOB,
        ),
    ] = 1024,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the baselines that were priced beside it.")
    ] = False,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Price changes; say what not to buy.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the plan: run-batch --plan FILE runs it."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--formats",
            metavar="any|LIST",
            help="Choose formats too, of int8, int4 (weights) and kv-int8: answers will differ.",
        ),
    ] = None,
    schedule: options.AnySchedule = None,
    kv_cache_dtype: options.KvCacheDtype = "f16",
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    threads: options.Threads = None,
    activations: options.Activations = None,
    revision: options.Revision = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Plan a job without running it, or loading the model: policy, time, memory, bound."""
    from headrace.cli.output import console, emit_json
    from headrace.cli.planning import Request, make

    if output is not None:
        check_output(output)
    allowed = None
    if formats is not None:
        from headrace.planner.formats import changes_in

        allowed = changes_in(formats)
    overrides: dict[str, Any] = {
        "schedule": schedule,
        "kv_dtype": kv_cache_dtype,
        "max_seqs": max_num_seqs,
        "max_rows": max_num_batched_tokens,
        "threads": threads,
        "activations": activations,
    }
    sizes = (prompt_len, gen_len, requests, seed, max_tokens, memory, device_memory, revision)
    planned = make(Request(model, hardware, input, *sizes, overrides, allowed), what_if)
    if output is not None:
        if planned.formats is not None:
            from headrace.cli.format_choice import check_plan_file

            check_plan_file(planned.formats, planned.commands)
        from headrace.cli.documents import write_document
        from headrace.planner.plan_file import plan_document

        content = plan_document(
            planned.plan,
            planned.at,
            planned.source.name,
            planned.machine.source,
            version=__version__,
            any_threads=threads is None and not planned.machine.here,
        )
        write_document(output, content, COMMENT.format(model=model, file=output.name))
    if json:
        emit_json(planned.to_dict())
    else:
        from headrace.cli.planning_view import print_planned

        print_planned(planned, console(), compare=compare)


COMMENT = """A plan of Headrace. What it asks for stands under policy and on_demand_rows; the rest
says what it was made for and what it is expected to do. To run it:
headrace run-batch {model} -i IN.jsonl -o OUT.jsonl --plan {file}"""


def check_output(path: Path) -> None:
    """Refuse before planning what could not be written after it. Raises UsageError."""
    from headrace.errors import UsageError

    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError("--output must be a file in an existing folder", got=str(path))
