"""A given policy, priced: the figures of ``simulate``, as data and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.cli.settings import read_config
from headrace.planner.batches import simulate_as
from headrace.planner.peaks import Peak, tier_peaks
from headrace.planner.plan_file import workload_document
from headrace.planner.policy_file import Setting, read_policy
from headrace.planner.published import WHOLE_EXPERTS, as_published, read_published
from headrace.planner.simulate import Prediction
from headrace.planner.traits import Traits
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, page_layout
from headrace.specs.policy import PAGE_SETS, Policy
from headrace.specs.units import format_bytes, format_seconds
from headrace.specs.workload import Workload


@dataclass(frozen=True)
class Question:
    """A policy file, and what is to be done under it by whose runtime; ``notes`` say in words how
    the job came about."""

    name: str
    model: ModelSpec
    pages: tuple[Page, ...]
    hardware: Hardware
    workload: Workload
    policy: Path
    schedule: str | None
    traits: Traits
    notes: tuple[str, ...] = ()


def answer(asked: Question) -> dict[str, Any]:
    """The figures, simulated. Raises UsageError for a policy that cannot be honoured."""
    at = asked
    if asked.traits.is_published:  # it moves whole experts, at the rates that it reaches
        hardware = as_published(asked.hardware, read_published(), asked.model, asked.traits)
        pages = page_layout(asked.model, WHOLE_EXPERTS)
        at = replace(asked, hardware=hardware, pages=pages)
    setting = Setting(at.model, at.pages, at.hardware, at.workload)
    written = read_policy(read_config(at.policy), setting, at.schedule)
    executed = at.traits.policy(written, at.schedule or at.traits.schedule)
    traits = replace(at.traits, schedule=executed.schedule)
    prediction = simulate_as(traits, at.model, at.pages, written, at.hardware, at.workload)
    return {
        "model": at.name,
        "hardware": at.hardware.name,
        "runtime": traits.name,
        "simulated": True,
        "workload": workload_document(at.workload),
        "schedule": executed.schedule,
        "policy": _policy(executed),
        "prediction": prediction_dict(prediction),
        "memory": {tier: peak._asdict() for tier, peak in _peaks(at, executed).items()},
        "notes": list(at.notes),
    }


def prediction_dict(found: Prediction) -> dict[str, Any]:
    """A prediction for ``--json``."""
    return {
        "job_seconds": found.seconds,
        "bound_seconds": found.bound_seconds,
        "bound_by": found.bound_by,
        "sweeps": found.sweeps,
        "tokens_per_second": found.decode_tokens_per_second,
        "prefill_tokens_per_second": found.prefill_phase_tokens_per_second,
        "decode_tokens_per_second": found.decode_phase_tokens_per_second,
        "prefill_seconds": found.prefill_seconds,
        "time_to_first_token_seconds": found.first_token._asdict(),
        "lanes": {
            lane: {"busy_seconds": busy, "utilisation": found.utilisation[lane]}
            for lane, busy in found.lanes.items()
        },
        "bytes_moved": dict(found.bytes_moved),
        "preemptions": found.preemptions,
    }


def print_answer(report: Mapping[str, Any], console: Console) -> None:
    """The same for people."""
    found, policy = report["prediction"], report["policy"]
    console.print(
        f"{report['model']} on {report['hardware']}, as {report['runtime']} runs it: simulated",
        style="bold",
        markup=False,
    )
    first, asked = found["time_to_first_token_seconds"], report["workload"]
    prompts, outputs = (_lengths(asked[name]) for name in ("prompt_len", "gen_len"))
    rows = [
        ("requests", f"{asked['requests']}: prompts of {prompts} tokens, outputs of {outputs}"),
        ("schedule", report["schedule"]),
        ("per sweep", f"{policy['max_seqs']} sequences, {policy['micro_batches']} micro-batches"),
        ("job", f"{format_seconds(found['job_seconds'])} in {found['sweeps']} sweeps"),
        ("generated", f"{found['tokens_per_second']:.1f} tok/s over the job"),
        ("prefill, its own share", f"{found['prefill_tokens_per_second']:.1f} tok/s"),
        ("decode, its own share", f"{found['decode_tokens_per_second']:.1f} tok/s"),
        ("first token", ", ".join(f"{k} {format_seconds(v)}" for k, v in first.items())),
        ("bound", f"{format_seconds(found['bound_seconds'])}, busiest lane {found['bound_by']}"),
    ]
    rows += [(f"moved over {n}", format_bytes(b)) for n, b in found["bytes_moved"].items()]
    table = Table(show_header=False, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(_lanes_table(found["lanes"]))
    console.print(_memory_table(report["memory"]))
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)


def _lengths(of: Mapping[str, float]) -> str:
    if of["min"] == of["max"]:
        return f"{of['min']}"
    return f"{of['min']} to {of['max']} ({of['mean']:.1f} on average)"


def _lanes_table(lanes: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("lane", "busy", "share", box=None)
    for name, lane in sorted(lanes.items(), key=lambda each: -each[1]["busy_seconds"]):
        table.add_row(name, format_seconds(lane["busy_seconds"]), f"{lane['utilisation']:.1%}")
    return table


def _memory_table(memory: Mapping[str, Mapping[str, int | None]]) -> Table:
    table = Table("tier", "planned", "there is", "", box=None)
    for tier, peak in memory.items():
        planned, capacity = peak["planned_bytes"] or 0, peak["capacity_bytes"]
        there = "unknown" if capacity is None else format_bytes(capacity)
        over = capacity is not None and planned > capacity
        table.add_row(tier, format_bytes(planned), there, "does not fit" if over else "")
    return table


def _policy(policy: Policy) -> dict[str, Any]:
    """Page ids are counted, not listed."""
    counts = {f"{name}_pages": len(getattr(policy, name)) for name in PAGE_SETS}
    return {k: v for k, v in vars(policy).items() if k not in PAGE_SETS} | counts


def _peaks(at: Question, policy: Policy) -> dict[str, Peak]:
    return tier_peaks(at.model, at.pages, policy, at.traits.hardware(at.hardware))
