"""A roofline as SVG or PNG. matplotlib is optional: imported here only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.cli.roofline_points import Chart, OperatingPoint
from headrace.errors import UsageError
from headrace.planner.roofline import cross_roof, memory_roof

_STEPS = 200


def write_plot(chart: Chart, title: str, file: Path) -> None:
    """Roofs, turning points and operations; format by suffix. Raises UsageError without
    matplotlib, or for another suffix."""
    if file.suffix not in (".svg", ".png"):
        raise UsageError("a plot's file name", expected="ending in .svg or .png", got=str(file))
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plots need matplotlib", hint="pip install 'headrace[plot]', or leave -o out"
        ) from error
    metadata = {"Date": None} if file.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "headrace", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        _draw(chart, title, figure.subplots())
        figure.savefig(file, metadata=metadata)


def _draw(chart: Chart, title: str, axes: Any) -> None:
    home, near = chart.levels
    link = cross_roof(chart.levels, 1, 0, 1.0)
    plan = () if chart.operating is None else chart.operating.points
    xs = [point.intensity for point in (*chart.points, *plan)]
    low, high = min([1.0, *xs]) / 2, max([near.flops / link, *xs]) * 3
    grid = [low * (high / low) ** (i / _STEPS) for i in range(_STEPS + 1)]

    def line(roof: Callable[[float], float], label: str, style: str) -> None:
        axes.plot(grid, [roof(x) for x in grid], style, label=label, linewidth=1.3)

    line(lambda x: memory_roof(near, x), f"{near.name}: min(P, B I)", "C0-")
    line(lambda x: min(near.flops, link * x), f"link {home.name} to {near.name}", "C1-")
    if home.flops:
        line(lambda x: memory_roof(home, x), f"{home.name}: min(P, B I)", "C2-")
    for number, point in enumerate(chart.points):
        reached = point.reaches[point.best].flops_per_second
        label = f"{point.operation.name}, N = {point.batch}: on the {point.best}"
        axes.plot([point.intensity], [reached], f"C{3 + number % 7}o", label=label)
        if point.operation.name == "experts" and point.turning:
            roof = point.turning.p2 * link
            axes.axvline(point.turning.p1, color="0.6", linestyle=":", linewidth=0.8)
            axes.axvline(point.turning.p2, color="0.6", linestyle="--", linewidth=0.8)
            axes.axhline(roof, color="0.8", linewidth=0.8)
            axes.annotate("P1", (point.turning.p1, point.turning.p1 * link), color="0.3")
            axes.annotate("P2", (point.turning.p2, roof), color="0.3")
    if chart.operating is not None:
        _mark_plan(chart.operating, axes)
    axes.set(xscale="log", yscale="log", title=title, ylabel="FLOP/s")
    axes.set_xlabel(f"FLOP per byte that leaves the {home.name}")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(True, which="major", color="0.92")


def _mark_plan(found: OperatingPoint, axes: Any) -> None:
    """The plan's own N and mu: a star for each operation, and what it is on."""
    for number, point in enumerate(found.points):
        reached = point.reaches[point.best].flops_per_second
        name = f"plan: {point.operation.name}, N = {found.rows}, mu = {found.mu}"
        style = {"markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.8}
        label = f"{name}: on the {point.best}"
        axes.plot([point.intensity], [reached], f"C{3 + number}*", label=label, **style)
