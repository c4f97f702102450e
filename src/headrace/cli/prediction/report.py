"""The study's table, in Markdown, and its figures as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.cli.prediction.verdict import Check, Outcome, Verdict, verdict_of
from headrace.specs.units import format_bytes

if TYPE_CHECKING:
    from headrace.cli.prediction.kept import Predicted

Rows = Sequence[tuple["Predicted", Outcome]]

_HEAD = (
    *("run", "model", "budget", "schedule", "bound by", "batch", "prompt", "output", "requests"),
    *("predicted (s)", "90 % interval (s)", "measured (s)", "IQR", "error", "inside"),
)  # fmt: skip


def markdown(rows: Rows, said: str) -> str:
    """The verdict, then every run; ``said`` is the line on machine and versions."""
    verdict = verdict_of([outcome for _, outcome in rows])
    lines = [said, "", *_verdict_lines(verdict), "", *_table(rows)]
    return "\n".join(lines) + "\n"


def report(rows: Rows) -> dict[str, Any]:
    """Everything for ``--json``."""
    verdict = verdict_of([outcome for _, outcome in rows])
    runs = [
        {
            **predicted.to_dict(),
            "measured": list(outcome.measured),
            "median": outcome.seconds,
            "error": outcome.error,
            "inside": outcome.inside,
            "spread": outcome.spread,
        }
        for predicted, outcome in rows
    ]
    return {"verdict": verdict.to_dict(), "runs": runs}


def _verdict_lines(verdict: Verdict) -> list[str]:
    played = verdict.mean_error_as_played
    lines = ["| figure | value | should be | holds |", "|---|---:|---:|---|"]
    lines += [_check_line(check) for check in verdict.checks]
    lines += [
        f"| mean absolute error without what pilots showed | {played:.1%} | | |",
        f"| mean error, signed | {verdict.mean_signed_error:+.1%} | | |",
        f"| spread (median of IQR / median) | {verdict.spread:.1%} | | |",
        f"| runs | {verdict.runs} | | |",
    ]
    return lines


def _check_line(check: Check) -> str:
    sign = ">=" if check.least else "<="
    holds = "yes" if check.holds else "no"
    return f"| {check.name} | {check.value:.1%} | {sign} {check.bound:.1%} | {holds} |"


def _table(rows: Rows) -> list[str]:
    lines = ["| " + " | ".join(_HEAD) + " |", "|---:|---|---:|---|---|" + "---:|" * 9 + "---|"]
    for predicted, outcome in rows:
        case = predicted.case
        cells = (
            case.index + 1,
            case.shape,
            format_bytes(predicted.memory),
            predicted.schedule + ("" if case.schedule is None else " (asked for)"),
            predicted.bound_by,
            case.batch,
            case.prompt_len,
            case.gen_len,
            predicted.requests,
            f"{outcome.predicted:.1f}",
            f"{outcome.low:.1f} to {outcome.high:.1f}",
            f"{outcome.seconds:.1f}",
            f"{outcome.spread:.1%}",
            f"{outcome.error:+.1%}",
            "yes" if outcome.inside else "no",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
