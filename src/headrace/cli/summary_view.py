"""What a run did, as tables: lines, rates, bytes, lanes, memory; predicted beside measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.specs.units import format_bytes, format_seconds

ROWS: tuple[tuple[str, str, str], ...] = (
    ("prefill_tokens_per_second", "Prefill throughput (tok/s)", "rate"),
    ("decode_tokens_per_second", "Output token throughput (tok/s)", "rate"),
    ("total_tokens_per_second", "Total token throughput (tok/s)", "rate"),
    ("requests_per_second", "Request throughput (req/s)", "rate"),
    ("wall_seconds", "Wall time", "seconds"),
    ("load_seconds", "Loading before it", "seconds"),
    ("predicted_seconds", "Predicted time", "seconds"),
    ("predicted_after_seconds", "Predicted, lengths known", "seconds"),
    ("bound_seconds", "Bound", "seconds"),
    ("one_by_one_seconds", "One by one (no overlap)", "seconds"),
    ("overlap_efficiency", "Overlap efficiency", "ratio"),
    ("bytes_read", "Bytes read", "bytes"),
    ("bytes_needed", "Bytes needed", "bytes"),
    ("peak_rss_bytes", "Peak resident set", "bytes"),
)
"""Key of the summary, label (as ``vllm bench`` prints it where it has one), and format."""


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print every row and table that the summary has data for."""
    console.print(figures_table(summary))
    for key, table in (("lanes", lanes_table), ("tiers", tiers_table)):
        if summary.get(key):
            console.print(table(summary[key]))


def figures_table(summary: Mapping[str, Any]) -> Table:
    """Label and value; prediction error and percent of the bound where both sides exist."""
    table = Table(title="Summary", title_justify="left", show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    if summary.get("lines") is not None:
        failed = f", {summary['failed']} of them failed" if summary.get("failed") else ""
        table.add_row("Lines", f"{summary['done']} of {summary['lines']} done{failed}")
    for key, label, style in ROWS:
        if summary.get(key) is not None:
            table.add_row(label, _text(summary[key], style) + _remark(key, summary))
    return table


def lanes_table(lanes: Mapping[str, Mapping[str, float]]) -> Table:
    """Busy seconds and share per lane, predicted beside measured."""
    table = Table("lane", "busy", "share", "predicted", "error", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, lane in lanes.items():
        busy, predicted = lane.get("busy_seconds"), lane.get("predicted_busy_seconds")
        table.add_row(
            name,
            "-" if busy is None else format_seconds(busy),
            "-" if lane.get("utilisation") is None else f"{lane['utilisation']:.0%}",
            "-" if predicted is None else format_seconds(predicted),
            error_text(predicted, busy),
        )
    return table


def tiers_table(tiers: Mapping[str, Mapping[str, int]]) -> Table:
    """Planned and used bytes per tier."""
    table = Table("tier", "planned", "used", box=None)
    for name, tier in tiers.items():
        table.add_row(name, format_bytes(tier["planned_bytes"]), format_bytes(tier["used_bytes"]))
    return table


def error_text(predicted: float | None, measured: float | None) -> str:
    """``+12 %``: how much longer the prediction was than the measurement."""
    if not predicted or not measured:
        return "-"
    return f"{(predicted / measured - 1) * 100:+.0f} %"


def _text(value: Any, style: str) -> str:
    if style == "bytes":
        return format_bytes(value)
    if style == "seconds":
        return format_seconds(value)
    return f"{value:.2f}"


def _remark(key: str, summary: Mapping[str, Any]) -> str:
    wall = summary.get("wall_seconds")
    if key in ("predicted_seconds", "predicted_after_seconds") and wall:
        return f" ({error_text(summary[key], wall)})"
    if key == "bound_seconds" and wall:
        return f" (wall is {wall / summary[key]:.2f} x)" if summary[key] else ""
    if key == "bytes_read" and summary.get("direct_io") is not None:
        return " direct" if summary["direct_io"] else " buffered"
    return ""
