"""``headrace simulate MODEL --policy FILE``: what a given policy would take, without searching."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options


def simulate(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a registry name.")],
    policy: Annotated[
        Path, typer.Option("--policy", metavar="FILE", help="YAML or JSON; see docs/commands.md.")
    ],
    hardware: options.Hardware,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", metavar="NAME", help="Instead of the policy's own."),
    ] = None,
    prompt_len: Annotated[
        str,
        typer.Option(
            "--prompt-len",
            metavar=options.TOKENS,
            help="Tokens each; a range as 32-512 is drawn from.",
        ),
    ] = "128",
    gen_len: Annotated[
        str,
        typer.Option("--gen-len", metavar=options.TOKENS, help="Tokens each, or a range."),
    ] = "128",
    requests: Annotated[int, typer.Option("--requests", min=1, max=1_000_000)] = 1000,
    seed: options.Seed = 0,
    runtime: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="headrace|moe-lightning|flexgen|flexgen_c|zero",
            help="Whose runtime executes it.",
        ),
    ] = "headrace",
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Price a policy: time, rates, what bounds it, busy lanes, memory. Nothing is run."""
    from headrace.cli.hardware_source import find_machine
    from headrace.cli.model_source import find_model
    from headrace.cli.output import console, emit_json
    from headrace.cli.simulated import Question, answer, print_answer
    from headrace.cli.workload_source import lengths_said
    from headrace.planner.traits import runtime as runtime_of

    found = find_model(model)
    job = lengths_said(prompt_len, gen_len, requests, found.model.max_positions, seed)
    question = Question(
        name=found.name,
        model=found.model,
        pages=found.pages,
        hardware=find_machine(hardware).hardware,
        workload=job.workload,
        policy=policy,
        schedule=schedule,
        traits=runtime_of(runtime),
        notes=job.notes,
    )
    report = answer(question)
    if json:
        emit_json(report)
    else:
        print_answer(report, console())
