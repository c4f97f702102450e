"""Predicted against measured, over all runs of a study: the figures, and what they should be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One run: seconds predicted with the ends of the 90 % interval, and those measured. ``bias``:
    of ln(measured / played), what earlier runs had let expect and the prediction counts with."""

    predicted: float
    low: float
    high: float
    measured: tuple[float, ...]
    bias: float = 0.0

    @property
    def seconds(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.measured)

    @property
    def error(self) -> float:
        """How much longer the prediction was than the run; a share of the run."""
        return self.predicted / self.seconds - 1.0

    @property
    def error_as_played(self) -> float:
        """The same of the prediction without what earlier runs had shown."""
        return self.predicted / math.exp(self.bias) / self.seconds - 1.0

    @property
    def inside(self) -> bool:
        """Whether the run took what the interval said."""
        return self.low <= self.seconds <= self.high

    @property
    def half_width(self) -> float:
        """Half of the interval, as a share of the prediction."""
        return (self.high - self.low) / 2 / self.predicted

    @property
    def spread(self) -> float:
        """Interquartile range of the repeats over their median; 0 of a single one."""
        if len(self.measured) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.measured, n=4, method="inclusive")
        return (third - first) / self.seconds


@dataclass(frozen=True)
class Check:
    """A figure and the bound that it should keep. ``least``: it should be at least as large."""

    name: str
    value: float
    bound: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value >= self.bound if self.least else self.value <= self.bound


@dataclass(frozen=True)
class Verdict:
    """The figures of a study; shares, not percent."""

    runs: int
    mean_error: float
    mean_error_as_played: float
    mean_signed_error: float
    worst: float
    inside: float
    half_width: float
    spread: float

    @property
    def checks(self) -> tuple[Check, ...]:
        """What a study should show: no worse than what repeats of a run differ by."""
        return (
            Check("mean absolute error", self.mean_error, max(0.06, 1.5 * self.spread)),
            Check("worst error", self.worst, max(0.15, 2.5 * self.spread)),
            Check("runs inside the 90 % interval", self.inside, 0.9, least=True),
            Check("median half-width of the interval", self.half_width, max(0.10, 2 * self.spread)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, checks included."""
        checks = [{**asdict(check), "holds": check.holds} for check in self.checks]
        return {**asdict(self), "checks": checks}


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """The figures of at least one run."""
    errors = [outcome.error for outcome in outcomes]
    return Verdict(
        runs=len(outcomes),
        mean_error=statistics.fmean(map(abs, errors)),
        mean_error_as_played=statistics.fmean(abs(outcome.error_as_played) for outcome in outcomes),
        mean_signed_error=statistics.fmean(errors),
        worst=max(map(abs, errors)),
        inside=statistics.fmean(outcome.inside for outcome in outcomes),
        half_width=statistics.median(outcome.half_width for outcome in outcomes),
        spread=statistics.median(outcome.spread for outcome in outcomes),
    )
