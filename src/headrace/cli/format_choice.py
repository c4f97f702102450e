"""What ``plan --formats`` says of the formats it chose: how to have them, and what they rest on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from headrace.cli.hardware_source import Machine
from headrace.cli.model_source import Source
from headrace.errors import UsageError
from headrace.planner.formats import STORED, FormatSearch, Tried
from headrace.planner.plan import Overrides
from headrace.planner.what_if import LEAST_GAIN
from headrace.specs.registry import known_model
from headrace.specs.units import format_seconds

FOLDER = "DIR"
"""Stands for the folder that ``headrace quantize`` is to make."""


def commands(found: FormatSearch, source: Source, asked: str, revision: str | None) -> list[str]:
    """What to type to have the formats that were chosen, ``asked`` being the model as it was named;
    nothing where they are those in use."""
    if not found.changes_weights and not found.changes_kv:
        return []
    name = known_model(asked).repo if source.kind == "registry" else asked
    model = shlex.quote(name) + (f" --revision {shlex.quote(revision)}" if revision else "")
    if not found.changes_weights:
        return [_run(model, found.chosen)]
    quantize = f"headrace quantize {model} -o {FOLDER} --weights {found.chosen.weights}"
    return [quantize, _run(FOLDER, found.chosen)]


def rates_notes(found: FormatSearch, machine: Machine) -> list[str]:
    """Which formats were told apart by their bytes alone, since nobody measured their rates."""
    notes = []
    if any(
        each.plan and each.weights != STORED and not machine.knows(each.at) for each in found.tried
    ):
        notes.append(
            "weights are told apart by their bytes: arithmetic at one rate for all formats"
        )
    if any(each.plan and each.kv_dtype != found.tried[0].kv_dtype for each in found.tried):
        notes.append(
            "KV caches are told apart by their bytes: attention at one rate for all formats"
        )
    return notes


def check_plan_file(found: FormatSearch, commands: Sequence[str]) -> None:
    """Raise UsageError where a plan would be for a checkpoint that nobody has made: what a page of
    it takes, its files will say."""
    if found.changes_weights:
        replan = f"headrace plan {FOLDER}{_flag(found.chosen)} -o plan.yaml with the same job"
        raise UsageError(
            "a plan file is for a checkpoint that is there",
            expected="the weights as they are stored to be the fastest",
            got=f"{found.chosen.weights}, to be made first",
            hint=f"{commands[0]}; then {replan}",
        )


def formats_table(found: FormatSearch) -> Table:
    """Every combination with the job's time, or why it was refused."""
    table = Table("weights", "KV cache", "job", "gain", "bound by", box=None, padding=(0, 2, 0, 0))
    for each in found.tried:
        names, style = (each.weights, each.kv_dtype), "bold" if each is found.chosen else None
        if each.plan is None:
            table.add_row(*names, "-", "-", escape(each.refusal.message if each.refusal else ""))
            continue
        gain = found.gain(each)
        said = "-" if gain is None else f"{gain:+.0%}"
        table.add_row(*names, format_seconds(each.seconds), said, each.plan.bound_by, style=style)
    return table


def choice_lines(found: FormatSearch, commands: Sequence[str]) -> list[str]:
    """The choice in words, and how to have it."""
    if not commands:
        return [f"formats: those in use, no other that is allowed saves {LEAST_GAIN:.0%}"]
    chosen = f"{found.chosen.weights} weights, KV cache in {found.chosen.kv_dtype}"
    return [f"formats: {chosen}; answers will differ. To have them:", *(f"  {c}" for c in commands)]


def _run(model: str, chosen: Tried) -> str:
    return f"headrace run-batch {model} -i IN.jsonl -o OUT.jsonl{_flag(chosen)}"


def _flag(chosen: Tried) -> str:
    usual = chosen.kv_dtype == Overrides.kv_dtype
    return "" if usual else f" --kv-cache-dtype {chosen.kv_dtype}"
