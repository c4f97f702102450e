"""What ``quantize`` did and lost, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.specs.units import format_bytes, format_seconds


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Sizes, the error of each layer, the change of perplexity."""
    console.print(_facts(report))
    console.print(_layers(report))


def _facts(report: Mapping[str, Any]) -> Table:
    table = Table(title=report["output"], title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "weights", f"{report['format']}, {report['bits_per_integer_weight']:.2f} bits each"
    )
    before, after = report["source_bytes"], report["bytes"]
    sizes = f"{format_bytes(after)}, from {format_bytes(before)} ({after / before:.1%})"
    table.add_row("size", sizes)
    table.add_row("time", format_seconds(report["quantize_seconds"]))
    table.add_row("error", f"{report['relative_error']:.3%} of the weights (root mean square)")
    found = report.get("perplexity")
    if found is not None:
        table.add_row("perplexity", f"{found['source']:.4f} of {found['text']}, before")
        for name, change in found["change"].items():
            error = found["change_error"][name]
            after = f"{found[name]:.4f}, {change:+.2%} ± {error:.2%} with activations in {name}"
            table.add_row("", after)
    return table


def _layers(report: Mapping[str, Any]) -> Table:
    """Error of each layer's weights and, where a text was read, of what the layer puts out."""
    layers = report["layers"]
    outputs = list(layers[0].get("output", ())) if layers else []
    titles = ("layer", "attention", "experts", *(f"output, {name}" for name in outputs))
    table = Table(*titles, box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.justify = "right"
    for layer in layers:
        shares = [layer["attention"], layer["experts"], *(layer["output"][n] for n in outputs)]
        table.add_row(str(layer["layer"]), *(_percent(share) for share in shares))
    if report["head_error"] is not None:
        table.add_row("head", _percent(report["head_error"]))
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.3%}"
