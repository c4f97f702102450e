"""How long a call takes: the median of repetitions, each long enough for the clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST_SECONDS = 3e-3
"""Calls shorter than this are timed several at a time."""

LEAST_SAMPLES = 5


class Turn(NamedTuple):
    """``run(i)`` is timed, i counting its calls; ``before()`` comes before each sample, untimed."""

    run: Callable[[int], object]
    before: Callable[[], object] = tuple


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

    def in_turn(self, turns: Sequence[Turn]) -> list[list[float]]:
        """Seconds of one call of each, sampled in turn: what the machine gives from one second to
        the next it gives to all of them, and the i-th samples belong together."""
        calls, done = [self._calls(turn) for turn in turns], [1] * len(turns)
        samples: list[list[float]] = [[] for _ in turns]
        began = self.clock()
        while len(samples[-1]) < LEAST_SAMPLES or (
            self.clock() - began < self.seconds * len(turns)
        ):
            for i, turn in enumerate(turns):
                turn.before()
                samples[i].append(self._once(turn.run, done[i], calls[i]) / calls[i])
                done[i] += calls[i]
        return samples

    def _samples(self, run: Callable[[int], object]) -> list[float]:
        (samples,) = self.in_turn([Turn(run)])
        return samples

    def _calls(self, turn: Turn) -> int:
        turn.before()
        first = self._once(turn.run, 0, 1)  # pages touched, code loaded
        return max(1, int(LEAST_SECONDS / max(first, 1e-7)))

    def _once(self, run: Callable[[int], object], first: int, calls: int) -> float:
        before = self.clock()
        for i in range(first, first + calls):
            run(i)
        return self.clock() - before
