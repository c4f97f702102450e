"""``headrace run-batch MODEL -i IN -o OUT``: answer a file of prompts, durably."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli import options
from headrace.errors import UsageError

log = logging.getLogger("headrace.run_batch")


def run_batch(
    model: options.Model,
    input: Annotated[
        Path, typer.Option("--input", "-i", help="JSONL: OpenAI batch lines or plain prompts.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSONL, in order of completion.")],
    revision: options.Revision = None,
    memory: options.Memory = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Run this plan as it stands (headrace plan -o FILE), or refuse.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    schedule: options.Schedule = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="A trial run of the first N lines.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do lines that failed again.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, replace the output.")] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Output tokens of a line that says nothing.")
    ] = 1024,
    seed: options.Seed = 0,
    kv_cache_dtype: options.KvCacheDtype = "f16",
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    kernels: options.Kernels = "auto",
    activations: options.Activations = None,
    follow_routing: options.FollowRouting = False,
    trace: options.Trace = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    faults: options.Faults = None,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Answer every line of a batch file; interrupted, the same command resumes.

    Prints the plan first, then progress, then what happened beside what was predicted. A log
    is kept in OUT.log. Exit code 1 when some lines carry errors.
    """
    from headrace.cli.batch_job import BatchRun
    from headrace.cli.engine import open_llm
    from headrace.cli.faults import faults_of
    from headrace.cli.logfile import log_beside
    from headrace.cli.output import console, emit_json
    from headrace.cli.summary_view import print_summary
    from headrace.cli.trace_files import check_trace

    check_files(input, output)
    check_trace(trace, input, output)
    said = console(stderr=True)
    points = faults_of(faults)
    settings: dict[str, Any] = {
        "schedule": schedule,
        "kv_dtype": kv_cache_dtype,
        "max_seqs": max_num_seqs,
        "max_rows": max_num_batched_tokens,
        "threads": threads,
        "kernels": kernels,
        "activations": activations,
    }
    asked = None
    if plan is not None:
        from headrace.cli.followed import read_plan_file, settings_of

        asked = read_plan_file(plan)
        if follow_routing:
            raise UsageError(
                "--follow-routing beside --plan",
                expected="one of the two",
                hint="a plan names the experts that stay",
            )
        settings = settings_of(asked, plan.name, settings)
    with (
        log_beside(output, keep=not dry_run),
        open_llm(
            model,
            memory=memory,
            revision=revision,
            seed=seed,
            max_model_len=max_model_len,
            follow_routing=follow_routing,
            faults=points,
            **settings,
        ) as llm,
    ):
        log.info("headrace %s", " ".join(sys.argv[1:]))
        name = Path(model).resolve().name
        follow = None if asked is None or plan is None else (asked, plan.name)
        run = BatchRun(
            llm, name, input, output, limit, retry_errors, fresh, max_tokens, said, follow
        )
        result: dict[str, Any] = run.dry_run() if dry_run else run.run(trace)
    if json:
        emit_json(result)
    elif not dry_run:
        print_summary(result, said)
    if result.get("failed"):
        raise typer.Exit(1)


def check_files(input: Path, output: Path) -> None:
    """Refuse at once what cannot work. Raises UsageError."""
    if not input.is_file():
        raise UsageError("no such input file", got=str(input))
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError("the output must be a file in an existing folder", got=str(output))
    if output.exists() and output.samefile(input):
        raise UsageError("input and output are the same file", got=str(output))
