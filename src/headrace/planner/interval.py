"""How much longer than played the next run will take, and how far from that it may end: from what
earlier runs on the machine showed.

With n earlier runs, whose residuals are r_i = ln(measured / played), the next one is expected at

    m = sum r_i / n'                                                     n' = N0 + n

and lies within t(n') s sqrt(1 + 1 / n') of it nine times in ten, if runs are alike, with

    s^2 = (N0 (s0^2 + noise^2 + m^2) + sum (r_i - m)^2) / n'

This is the predictive distribution of a normal whose mean and variance are unknown, after N0 runs
around 0 of spread s0 that are assumed before any was seen (Gelman et al., Bayesian Data Analysis,
3.3). So one run moves a prediction by a fifth of its residual, and a dozen by most of what they
have in common. ``noise``, what repeats of one timing differed by, widens what is assumed; what was
seen has its own noise in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR_RUNS, PRIOR_SPREAD = 4, 0.06
"""N0 and s0: residuals of the runs in docs/lab/prediction.md, made while this was built."""


def bias(residuals: Sequence[float]) -> float:
    """The ln(measured / played) that is expected of the next run."""
    return math.fsum(residuals) / (PRIOR_RUNS + len(residuals))


def half_width(residuals: Sequence[float], noise: float = 0.0) -> float:
    """Half the 90 % interval of ln(measured / played), around ``bias``."""
    count, mean = PRIOR_RUNS + len(residuals), bias(residuals)
    assumed = PRIOR_SPREAD**2 + min(noise, 1.0) ** 2 + mean**2
    spread = math.sqrt((PRIOR_RUNS * assumed + sum((r - mean) ** 2 for r in residuals)) / count)
    return _t95(count) * spread * math.sqrt(1 + 1 / count)


def _t95(freedom: int) -> float:
    """The 95 % point of Student's t (Hill 1970, expanded in 1 / freedom; within 1 % from 4 on)."""
    z = 1.6448536
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
