"""How long a call takes: the median of repetitions, each long enough for the clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

LEAST_SECONDS = 2e-4
"""Calls shorter than this are timed several at a time."""

LEAST_SAMPLES = 5


@dataclass(frozen=True)
class Watch:
    """Times callables for about ``seconds`` each."""

    clock: Callable[[], float]
    seconds: float

    def median(self, run: Callable[[int], object]) -> float:
        """Seconds of one ``run(i)``; i counts the calls, so that it may take the next of a set."""
        return statistics.median(self._samples(run))

    def best(self, run: Callable[[int], object]) -> float:
        """The shortest: what the machine can do when nothing disturbs it."""
        return min(self._samples(run))

    def _samples(self, run: Callable[[int], object]) -> list[float]:
        first = self._once(run, 0, 1)  # pages touched, code loaded
        calls = max(1, int(LEAST_SECONDS / max(first, 1e-7)))
        samples: list[float] = []
        began, done = self.clock(), 1
        while len(samples) < LEAST_SAMPLES or self.clock() - began < self.seconds:
            samples.append(self._once(run, done, calls) / calls)
            done += calls
        return samples

    def _once(self, run: Callable[[int], object], first: int, calls: int) -> float:
        before = self.clock()
        for i in range(first, first + calls):
            run(i)
        return self.clock() - before
