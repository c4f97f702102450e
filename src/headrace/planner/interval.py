"""How far from a prediction a run may end: from what earlier runs on the machine showed.

With n earlier runs, whose residuals are r_i = ln(measured / predicted), the next one lies within

    t(n') s sqrt(1 + 1 / n')   s^2 = (N0 (s0^2 + noise^2) + sum r_i^2) / n',   n' = N0 + n

of the prediction nine times in ten, if runs are alike: the prediction interval of a normal
distribution around 0, with N0 runs of spread s0 assumed before any was seen. Residuals count from
0, not from their mean: a bias widens the interval rather than being believed. ``noise``, what
repeats of one timing differed by, widens what is assumed; what was seen has its own noise in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR_RUNS, PRIOR_SPREAD = 4, 0.06
"""N0 and s0: residuals of the runs in docs/lab/prediction.md, made while this was built."""


def half_width(residuals: Sequence[float], noise: float = 0.0) -> float:
    """Half the 90 % interval of ln(measured / predicted)."""
    count = PRIOR_RUNS + len(residuals)
    assumed = PRIOR_SPREAD**2 + min(noise, 1.0) ** 2
    spread = math.sqrt((PRIOR_RUNS * assumed + sum(r * r for r in residuals)) / count)
    return _t95(count) * spread * math.sqrt(1 + 1 / count)


def _t95(freedom: int) -> float:
    """The 95 % point of Student's t (Hill 1970, expanded in 1 / freedom; within 1 % from 4 on)."""
    z = 1.6448536
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
