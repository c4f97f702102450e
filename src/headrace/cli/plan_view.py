"""A plan, and later what became of it, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from headrace.specs.policy import Policy
from headrace.specs.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from headrace.planner.plan import Plan
    from headrace.planner.simulate import Prediction


def print_plan(plan: Plan, console: Console) -> None:
    """Memory map, policy, expected time with its interval, and what bounds it."""
    console.print(memory_table(plan.memory.lines()))
    console.print(policy_table(plan.policy))
    for line in prediction_lines(plan.prediction):
        console.print(line)
    for note in plan.notes:
        console.print(f"note: {note}")


def memory_table(lines: Sequence[tuple[str, str]]) -> Table:
    """Part and size; the last line is the budget."""
    table = Table("memory", "size", title="Plan", title_justify="left", box=None)
    table.columns[1].justify = "right"
    for part, size in lines[:-1]:
        table.add_row(part, size)
    table.add_row(*lines[-1], style="bold")
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


def prediction_lines(prediction: Prediction) -> list[str]:
    """Expected time with its interval and what that rests on, rates, and the bound."""
    interval = f"{format_seconds(prediction.low)} to {format_seconds(prediction.high)}"
    guess = ", output lengths guessed" if prediction.assumed else ""
    rates = (
        f"prefill {prediction.prefill_tokens_per_second:.1f} tok/s, "
        f"decode {prediction.decode_tokens_per_second:.1f} tok/s"
    )
    lanes = ", ".join(f"{n} {format_seconds(s)}" for n, s in prediction.lanes.items())
    return [
        f"predicted time: {format_seconds(prediction.seconds)} ({interval}{guess})",
        f"predicted rates: {rates} in {prediction.sweeps} sweeps",
        f"bound by: {prediction.bound_by} (busy: {lanes})",
    ]


def plan_text(plan: Plan) -> str:
    """The same as plain text, for the log."""
    from io import StringIO

    page = StringIO()
    print_plan(plan, Console(file=page, width=100, no_color=True))
    return page.getvalue()


def plan_dict(plan: Plan) -> dict[str, Any]:
    """The same for ``--json``; page ids are counted, not listed."""
    sets = {k: len(v) for k, v in vars(plan.policy).items() if isinstance(v, frozenset)}
    policy = {k: v for k, v in vars(plan.policy).items() if k not in sets}
    prediction = plan.prediction
    rates = ("prefill_tokens_per_second", "decode_tokens_per_second", "bound_by")
    return {
        "policy": {**policy, **{f"{name}_pages": count for name, count in sets.items()}},
        "memory": {
            **plan.memory.parts,
            "margin": plan.memory.margin_bytes,
            "total": plan.memory.total_bytes,
            "budget": plan.memory.budget_bytes,
        },
        "smallest_bytes": plan.smallest_bytes,
        "predicted_seconds": prediction.seconds,
        "prediction": {**vars(prediction), **{name: getattr(prediction, name) for name in rates}},
        "on_demand_rows": plan.on_demand_rows,
        "notes": list(plan.notes),
    }
