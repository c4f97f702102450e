"""The main job on real input: the bundled prompts on a checkpoint more than twice the budget.

``python -m demo.run`` runs the ``headrace`` command as a user would, then shows a few of its
answers, what was predicted beside what was measured, and where the timeline is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.memory.checkpoint import Checkpoint
from headrace.specs.units import format_bytes, format_seconds

FOLDER = Path(".demo")
PROMPTS = Path(__file__).with_name("prompts.jsonl")
BUDGET = "600MB"
SEQUENCES = "32"
SHOWN = 5


def main() -> int:
    """Run, then show. Returns the command's exit code."""
    console = Console(highlight=False)
    model, output, trace = FOLDER / "model", FOLDER / "answers.jsonl", FOLDER / "timeline.json"
    size = Checkpoint.open(model).total_bytes
    console.print(
        f"[bold]headrace demo[/]: {format_bytes(size)} of weights within {BUDGET}. The budget "
        "emulates a machine too small for the model: experts stream from disk in every sweep, "
        "past the page cache."
    )
    command = ["run-batch", str(model), "-i", str(PROMPTS), "-o", str(output)]
    command += ["--memory", BUDGET, "--max-num-seqs", SEQUENCES, "--fresh", "--trace", str(trace)]
    console.print(f"$ headrace {' '.join(command)}\n")
    ran = subprocess.run(
        [sys.executable, "-m", "headrace", *command, "--json"], stdout=subprocess.PIPE, check=False
    )
    if ran.returncode:
        return ran.returncode
    show_answers(output, console)
    show_figures(json.loads(ran.stdout), console)
    console.print(f"\ntimeline: {trace}.svg (open in a browser), {trace} (open in Perfetto)")
    return 0


def show_answers(output: Path, console: Console) -> None:
    """A few lines of the result file, asked and answered."""
    asked = {line["custom_id"]: line for line in _lines(PROMPTS) if "custom_id" in line}
    answered = [line for line in _lines(output) if line.get("custom_id") in asked]
    console.print("\n[bold]Some answers[/]")
    for line in answered[:: max(1, len(answered) // SHOWN)][:SHOWN]:
        body = asked[line["custom_id"]]["body"]
        question = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        choice = line["response"]["body"]["choices"][0]
        answer = choice["message"]["content"] if "message" in choice else choice["text"]
        console.print(f"[dim]>[/] {_short(question)}\n  {_short(answer)}", markup=True)


def show_figures(summary: Mapping[str, Any], console: Console) -> None:
    """Predicted beside measured, and what bounds the run."""
    table = Table("", "predicted", "measured", "error", box=None, title="Predicted and measured")
    for column in table.columns[1:]:
        column.justify = "right"
    wall = summary["wall_seconds"]
    rows = [
        ("before the run (lengths guessed)", summary["predicted_seconds"], wall),
        ("with the lengths that came out", summary["predicted_after_seconds"], wall),
    ]
    for lane in ("disk", "cpu"):
        found = summary["lanes"].get(lane, {})
        if "predicted_busy_seconds" in found:
            rows.append((f"{lane} busy", found["predicted_busy_seconds"], found["busy_seconds"]))
    for name, predicted, measured in rows:
        error = f"{(predicted / measured - 1) * 100:+.0f} %" if measured else "-"
        table.add_row(name, format_seconds(predicted), format_seconds(measured), error)
    console.print()
    console.print(table)
    console.print(
        f"{summary['done']} lines, {summary['generated_tokens']} tokens generated at "
        f"{summary['generated_tokens'] / wall:.0f} tok/s; "
        f"{format_bytes(summary['bytes_read'])} read, "
        f"{format_bytes(summary['bytes_needed'])} needed; peak memory "
        f"{format_bytes(summary['peak_rss_bytes'])} with Python and torch; wall is "
        f"{wall / summary['bound_seconds']:.2f}x the bound."
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _short(text: str, most: int = 160) -> str:
    line = " ".join(str(text).split()).replace("[", "\\[")
    return line if len(line) <= most else line[: most - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
