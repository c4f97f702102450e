"""What a draw asks for and what it finds, as kernels are given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Best(NamedTuple):
    """The likeliest token of a row and its logit; ``finite`` says that the logit is a finite
    number and no logit is NaN, ``all_finite`` that every logit is finite."""

    token: int
    value: float
    finite: bool
    all_finite: bool


class Draw(NamedTuple):
    """One draw from row ``row`` of the logits, whose largest is ``top``.

    Candidates are what min-p, then top-k, then top-p leave (0, 0 and 1: all); the cumulative
    distribution is inverted at ``uniform`` in [0, 1).
    """

    row: int
    top: float
    temperature: float
    min_p: float
    top_k: int
    top_p: float
    uniform: float


class Rank(NamedTuple):
    """Asks for the ``most`` likeliest tokens of row ``row``, whose largest logit is ``top``."""

    row: int
    top: float
    most: int


class Ranked(NamedTuple):
    """log sum exp of a row's logits, and (token, logit) of the likeliest, best first."""

    log_sum: float
    best: Sequence[tuple[int, float]]
