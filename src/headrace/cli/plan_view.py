"""A plan, and later what became of it, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.specs.policy import Policy
from headrace.specs.units import format_bytes, format_seconds


def print_plan(plan: Any, console: Console) -> None:
    """Memory map, policy, expected time with its interval, and what bounds it."""
    console.print(memory_table(plan.memory_map))
    console.print(policy_table(plan.policy))
    for line in prediction_lines(plan.prediction, plan.bound_by):
        console.print(line)
    for note in plan.notes:
        console.print(f"note: {note}")


def memory_table(memory_map: Mapping[str, int]) -> Table:
    """Part -> bytes, and the sum."""
    table = Table("memory", "bytes", title="Plan", title_justify="left", box=None)
    table.columns[1].justify = "right"
    for part, size in memory_map.items():
        table.add_row(part, format_bytes(size))
    table.add_row("all", format_bytes(sum(memory_map.values())), style="bold")
    return table


def policy_table(policy: Policy) -> Table:
    """The choices that matter to a reader."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("schedule", policy.schedule)
    batch = f"{policy.max_seqs} sequences, {policy.max_rows} tokens"
    table.add_row("per sweep", f"{batch} in {policy.micro_batches} micro-batches")
    if policy.ring_slots:
        ring = f"{policy.ring_slots} slots of {format_bytes(policy.slot_bytes)}"
        table.add_row("ring", f"{ring}, {policy.disk_lanes} reads in flight")
    table.add_row("resident", f"{len(policy.resident)} pages")
    tokens = policy.kv_blocks * policy.kv_block
    table.add_row("KV", f"{tokens} tokens, {policy.kv_dtype}")
    return table


def prediction_lines(prediction: Any, bound_by: str) -> list[str]:
    """Expected time with interval, rates, and the bound."""
    if prediction is None:
        return []
    interval = f"{format_seconds(prediction.low)} to {format_seconds(prediction.high)}"
    rates = (
        f"prefill {prediction.prefill_tokens_per_second:.1f} tok/s, "
        f"decode {prediction.decode_tokens_per_second:.1f} tok/s"
    )
    return [
        f"predicted time: {format_seconds(prediction.job_seconds)} ({interval})",
        f"predicted rates: {rates}",
        f"bound by: {bound_by}",
    ]


def plan_text(plan: Any) -> str:
    """The same as plain text, for the log."""
    from io import StringIO

    page = StringIO()
    print_plan(plan, Console(file=page, width=100, no_color=True))
    return page.getvalue()


def plan_dict(plan: Any) -> dict[str, Any]:
    """The same for ``--json``; page ids are counted, not listed."""
    policy = {k: v for k, v in vars(plan.policy).items() if k != "resident"}
    prediction = None if plan.prediction is None else dict(vars(plan.prediction))
    return {
        "policy": {**policy, "resident_pages": len(plan.policy.resident)},
        "memory_map": dict(plan.memory_map),
        "prediction": prediction,
        "bound_by": plan.bound_by,
        "notes": list(plan.notes),
    }
