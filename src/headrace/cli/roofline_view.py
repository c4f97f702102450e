"""A roofline in the terminal: a plot of characters, then a table."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from headrace.cli.roofline_points import Chart, Point
from headrace.planner.roofline import cross_roof, memory_roof

WIDTH, HEIGHT = 72, 18


def print_chart(chart: Chart, title: str, console: Console) -> None:
    """Both, with what the letters mean."""
    console.print(title, style="bold", markup=False)
    for line in plot_lines(chart):
        console.print(line, markup=False)
    console.print(_table(chart))
    if chart.operating is not None:
        found = chart.operating
        plan = f"{found.schedule}, N = {found.rows}, mu = {found.mu}"
        console.print(f"capitals: the operating point of the plan ({plan})", markup=False)


def plot_lines(chart: Chart) -> list[str]:
    """Roofs over intensity where the data lives, both logarithmic. ``.`` the home's own roof,
    ``/`` the link, ``-`` the other level's arithmetic; a letter per operation, at its best,
    a capital for those of the plan."""
    home, near = chart.levels
    marks = [(letter, point.intensity, _best(point)) for letter, point in _lettered(chart)]
    xs = [x for _, x, _ in marks]
    low, high = min([0.5, *xs]) / 2, max([near.flops / cross_roof(chart.levels, 1, 0, 1), *xs]) * 2
    top = max(near.flops, home.flops) * 2
    bottom = min(cross_roof(chart.levels, 1, 0, low), *(y for *_, y in marks))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]

    def put(x: float, y: float, mark: str) -> None:
        column = round((WIDTH - 1) * math.log(x / low) / math.log(high / low))
        row = round((HEIGHT - 1) * math.log(top / y) / math.log(top / bottom))
        if 0 <= column < WIDTH and 0 <= row < HEIGHT:
            grid[row][column] = mark

    roofs: list[tuple[str, Callable[[float], float]]] = [
        ("-", lambda x: near.flops),
        ("/", lambda x: min(near.flops, cross_roof(chart.levels, 1, 0, x))),
    ]
    if home.flops:
        roofs.append((".", lambda x: memory_roof(home, x)))
    for mark, roof in roofs:
        for column in range(WIDTH):
            x = low * (high / low) ** (column / (WIDTH - 1))
            put(x, roof(x), mark)
    for letter, x, y in marks:
        put(x, y, letter)
    body = [
        f"{_flops(top * (bottom / top) ** (r / (HEIGHT - 1))):>9} |{''.join(line).rstrip()}"
        if r % 6 == 0
        else f"{'':9} |{''.join(line).rstrip()}"
        for r, line in enumerate(grid)
    ]
    axis = f"{'':9} +{'-' * WIDTH}"
    return [*body, axis, f"{'':11}{low:<12.3g}FLOP per byte at the {home.name}{high:>26.3g}"]


def _table(chart: Chart) -> Table:
    home, near = chart.levels
    table = Table(box=None, padding=(0, 2, 0, 0))
    heads = ("", "operation", "N", f"I {home.name}", f"I {near.name}", "P1", "P2")
    for head in (*heads, f"on {home.name}", f"on {near.name}", "best", "bound there"):
        table.add_column(head, justify="left" if head in ("", "operation", "best") else "right")
    for letter, point in _lettered(chart):
        turning = point.turning
        table.add_row(
            letter,
            point.operation.name,
            str(point.batch),
            f"{point.intensity:.3g}",
            f"{point.operation.intensity(near.name):.3g}",
            f"{turning.p1:.3g}" if turning else "",
            f"{turning.p2:.3g}" if turning else "",
            _flops(point.reaches[home.name].flops_per_second),
            _flops(point.reaches[near.name].flops_per_second),
            point.best,
            point.reaches[point.best].bound_by,
        )
    return table


def _lettered(chart: Chart) -> list[tuple[str, Point]]:
    """Points with their letters, those of the plan last: they are drawn over others."""
    plan = () if chart.operating is None else chart.operating.points
    small = [(chr(ord("a") + i % 26), point) for i, point in enumerate(chart.points)]
    return small + [(chr(ord("A") + i), point) for i, point in enumerate(plan)]


def _best(point: Point) -> float:
    return point.reaches[point.best].flops_per_second


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} T" if rate >= 1e12 else f"{rate / 1e9:.3g} G"
