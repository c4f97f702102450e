"""Options that several commands share, as annotated types: one name, one help text each.

Every option of every command can also come from the environment (``HEADRACE_MAX_TOKENS``)
or from ``--config FILE``; see ``settings.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.settings import load_config
from headrace.specs.policy import SCHEDULES

RUN, LIMITS, OUTPUT = "Run", "Limits", "Output and habits"

TOKENS = "N|LOW-HIGH"
"""Lengths that may be drawn from a range; see ``specs.lengths``."""

Model = Annotated[
    str, typer.Argument(help="A local checkpoint folder, or a Hugging Face repo id (org/name).")
]

# -- habits -----------------------------------------------------------------------------------
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)
]
JsonRows = Annotated[
    bool, typer.Option("--json", help="Print a JSON list of rows.", rich_help_panel=OUTPUT)
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="Say more: tracebacks of refusals.",
        rich_help_panel=OUTPUT,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of options. Command line > HEADRACE_* > this file > default.",
        is_eager=True,
        callback=load_config,
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel=OUTPUT)
]

# -- how to run -------------------------------------------------------------------------------
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Bound on weights + KV + activations, as 8GiB or 600MB. Default: what is free.",
        rich_help_panel=RUN,
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        help=f"One of {', '.join(SCHEDULES)}. Default: the planner's choice.",
        rich_help_panel=RUN,
    ),
]
AnySchedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        help="A schedule to plan with. Default: the planner's choice.",
        rich_help_panel=RUN,
    ),
]
Hardware = Annotated[
    str,
    typer.Option(
        "--hardware",
        metavar="auto|NAME|FILE.yaml",
        help="This machine, one of the registry (t4, l4, ...), or one in a file.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of all random choices.", rich_help_panel=RUN)
]
KvCacheDtype = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype", metavar="f16|bf16|f32|int8", help="KV format.", rich_help_panel=RUN
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a repo id.", rich_help_panel=RUN),
]
Kernels = Annotated[
    str,
    typer.Option(
        "--kernels",
        metavar="auto|native|reference",
        help="The arithmetic: C++ where it was built, or torch.",
        rich_help_panel=RUN,
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        metavar="int8|f32|bf16",
        help="What weights are multiplied with: integers with rows rounded to 8 bits (int8, the "
        "default) or left as they are; bf16 weights with rows as they are, or rounded to bf16.",
        rich_help_panel=RUN,
    ),
]
FollowRouting = Annotated[
    bool,
    typer.Option(
        "--follow-routing",
        help="Let the experts that stay in memory follow the routing, where sweeps read only what "
        "is routed: fewer reads than predicted, if some experts are chosen more often.",
        rich_help_panel=RUN,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Compute threads. Default: all cores.", rich_help_panel=RUN
    ),
]

# -- limits -----------------------------------------------------------------------------------
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", min=1, help="Longest prompt + output.", rich_help_panel=LIMITS),
]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs", min=1, help="Most sequences in a sweep.", rich_help_panel=LIMITS
    ),
]
MaxNumBatchedTokens = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens", min=1, help="Most tokens in a sweep.", rich_help_panel=LIMITS
    ),
]

# -- tests -----------------------------------------------------------------------------------
Faults = Annotated[
    str | None,
    typer.Option("--faults", hidden=True, help="Fail at named points: for tests (cli/faults.py)."),
]

# -- files ------------------------------------------------------------------------------------
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Chrome trace (opens in Perfetto) and FILE.svg: planned lanes beside measured, "
        "of the first 12,000 tasks.",
        rich_help_panel=OUTPUT,
    ),
]
