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
    prompt_len: Annotated[int, typer.Option("--prompt-len", min=1, help="Tokens each.")] = 128,
    gen_len: Annotated[int, typer.Option("--gen-len", min=1, help="Tokens each.")] = 128,
    requests: Annotated[int, typer.Option("--requests", min=1, max=1_000_000)] = 1000,
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
    from headrace.planner.traits import runtime as runtime_of
    from headrace.specs.workload import Workload

    found = find_model(model)
    question = Question(
        name=found.name,
        model=found.model,
        pages=found.pages,
        hardware=find_machine(hardware).hardware,
        workload=Workload.uniform(requests, prompt_len, gen_len),
        policy=policy,
        schedule=schedule,
        traits=runtime_of(runtime),
    )
    report = answer(question)
    if json:
        emit_json(report)
    else:
        print_answer(report, console())
