"""A long job played in part: its steady middle goes on for as long as there are requests."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

from headrace.specs.workload import Workload

_WAVES = 8
"""Times that a part fills all places: waves of equal requests are spread out by then."""

_LEAST = 64  # requests of it, for its mean lengths to be the job's
_MIDDLE = (0.3, 0.8)  # shares of the drawn tokens between which it is steady


def part_of(workload: Workload, places: int, tokens: int) -> Workload:
    """What to play of ``workload`` on ``places`` sequences at once: all of it, if it has no more
    than ``tokens`` to draw or is too short to have a middle."""
    if workload.gen_tokens <= tokens:
        return workload
    mean = workload.gen_tokens / workload.requests
    count = max(_LEAST, _WAVES * places, round(tokens / mean))
    return workload if 2 * count > workload.requests else sample(workload, count)


def rest_seconds(drawn: Sequence[int], ends: Sequence[float], tokens: float) -> float:
    """How long ``tokens`` more take, at the rate of the middle of what was played: ``drawn`` tokens
    by the end of each sweep, at ``ends`` seconds."""
    if not drawn or tokens <= 0:
        return 0.0
    begin, end = (_reached(drawn, share) for share in _MIDDLE)
    more = drawn[end] - drawn[begin]
    return tokens * (ends[end] - ends[begin]) / more if more > 0 else 0.0


def sample(workload: Workload, count: int) -> Workload:
    """``count`` requests at even quantiles of length, in order of arrival: their mean lengths are
    nearly those of all."""
    order = workload.by_length
    chosen = sorted(order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count))

    def of(lens: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(lens[i] for i in chosen)

    return replace(
        workload,
        prompt_lens=of(workload.prompt_lens),
        gen_lens=of(workload.gen_lens),
        max_lens=of(workload.max_lens) if workload.max_lens else (),
    )


def _reached(drawn: Sequence[int], share: float) -> int:
    """The sweep that draws the first ``share`` of all."""
    return min(bisect.bisect_left(drawn, share * drawn[-1]), len(drawn) - 1)
