"""Fitting the constants that no source gives, on the rows that may be known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from headrace.planner.published import Published, Replay

_FIRST_STEP, _LAST_STEP = 1.25, 1.03
_MOST = {"gpu_flops_share": 1.0}


def fit(published: Published, say: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """Values of the constants marked ``fitted`` that bring simulated rates nearest to published
    ones: least squares of log ratios over the rows that may be known, those of MoE-Lightning
    twice. Each in turn is moved by a factor while that helps, then by a smaller one."""
    values = {name: c.value for name, c in published.constants.items() if c.fitted}
    best, step = loss(published, values), _FIRST_STEP
    while step > _LAST_STEP:
        better = _moved(published, values, best, step)
        if better is None:
            step = math.sqrt(step)
        else:
            values, best = better
            say(f"{best:.4f} at {values}")
    return values


def loss(published: Published, values: Mapping[str, float]) -> float:
    """The weighted squares of log(simulated / published)."""
    rows = [row for row in published.rows if published.fitted_on(row)]
    total = 0.0
    for found in Replay(published.with_values(values)).rows(rows):
        weight = 2 if found.row.runtime == "moe-lightning" else 1
        total += weight * math.log(1 + found.residual) ** 2
    return total


def _moved(
    published: Published, values: dict[str, float], best: float, step: float
) -> tuple[dict[str, float], float] | None:
    """The first move of one constant that helps."""
    for name, value in values.items():
        for factor in (step, 1 / step):
            if value * factor <= _MOST.get(name, math.inf):
                tried = {**values, name: value * factor}
                found = loss(published, tried)
                if found < best:
                    return tried, found
    return None
