"""What ``plan`` says, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.cli.plan_view import policy_table
from headrace.cli.planning import Planned
from headrace.planner.plan_file import prediction_document
from headrace.specs.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from headrace.planner.plan import Plan


def print_planned(planned: Planned, console: Console, *, compare: bool = False) -> None:
    """The answer first, then policy, memory, and what was asked for beside them."""
    plan, source, machine = planned.plan, planned.source, planned.machine
    console.print(f"{source.name} ({source.kind}) on {machine.hardware.name}", markup=False)
    console.print(f"rates: {machine.source}", markup=False)
    for line in answer_lines(plan):
        console.print(line, markup=False)
    console.print(policy_table(plan.policy))
    console.print(tiers_table(plan))
    if planned.formats is not None:
        from headrace.cli.format_choice import choice_lines, formats_table

        console.print(formats_table(planned.formats))
        for line in choice_lines(planned.formats, planned.commands):
            console.print(line, markup=False)
    if compare:
        console.print(baselines_table(plan))
    if planned.what_if:
        from headrace.planner.what_if import advice

        console.print(what_if_table(planned))
        console.print(advice(planned.what_if), markup=False)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    if not source.runs:
        console.print("note: this model can be planned, not run yet", markup=False)


def answer_lines(plan: Plan) -> list[str]:
    """Time with its interval, rates, what bounds the job and by how much."""
    found, said = plan.prediction, prediction_document(plan)
    interval = f"{format_seconds(found.low)} to {format_seconds(found.high)}"
    guess = ", output lengths guessed" if found.assumed else ""
    lines = [
        f"job: {format_seconds(found.seconds)} (90 %: {interval}{guess})",
        f"{said['tokens_per_second']:.1f} generated tok/s over the whole job "
        f"(prefill {said['prefill_tokens_per_second']:.1f}, "
        f"decode {said['decode_tokens_per_second']:.1f} tok/s in their shares of it), "
        f"{found.sweeps} sweeps of {found.rows_per_sweep:.0f} rows",
    ]
    bound = f"bound by {found.bound_by}: busy {said['bound_busy_share']:.0%} of the time"
    if said["next"] is not None:
        bound += f"; next {said['next']['lane']}, {said['next']['share']:.0%} of that"
    if plan.chosen:
        lines.append(f"the plan is the baseline {plan.chosen}: nothing found was faster")
    return [*lines, bound]


def tiers_table(plan: Plan) -> Table:
    """Tier, part, size; a line for each tier's total against its capacity."""
    table = Table("tier", "part", "size", box=None, padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for tier, use in plan.memory.tiers.items():
        if not use.planned_bytes and not use.capacity_bytes:
            continue
        for part, size in use.parts.items():
            if size:
                table.add_row(tier, part, format_bytes(size))
        total = f"{format_bytes(use.planned_bytes)} of {format_bytes(use.capacity_bytes)}"
        table.add_row(tier, "planned", total, style="bold")
    return table


def baselines_table(plan: Plan) -> Table:
    """Each baseline's time over the plan's, or why it was refused."""
    table = Table("baseline", "job", "ratio", "", box=None, padding=(0, 2, 0, 0))
    own = plan.prediction.seconds
    table.add_row("this plan", format_seconds(own), "1.00", "", style="bold")
    for each in plan.baselines:
        if each.prediction is None:
            table.add_row(each.name, "-", "-", escape(each.refusal))
            continue
        took = each.prediction.seconds
        ratio = f"{took / own:.2f}" if own else "-"
        table.add_row(each.name, format_seconds(took), ratio, "")
    return table


def what_if_table(planned: Planned) -> Table:
    """Change, time, gain, what bounds then."""
    table = Table("what if", "job", "gain", "bound by", box=None, padding=(0, 2, 0, 0))
    for each in planned.what_if:
        if each.seconds is None or each.gain is None:
            table.add_row(each.name, "-", "-", escape(each.refusal))
            continue
        gain = f"{each.gain:+.0%}"
        table.add_row(each.name, format_seconds(each.seconds), gain, each.bound_by or "")
    return table
