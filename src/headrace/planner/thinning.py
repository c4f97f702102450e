"""A long job played in part: what a steady middle adds is a line through two shorter jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from headrace.specs.workload import Workload

_WAVES = 8
"""Times that the shorter job fills all places: waves of equal requests are spread out by then."""

_LEAST = 64  # requests of it, for its mean lengths to be the job's


class Parts(NamedTuple):
    """Two shorter jobs of a long one, and how many times what the longer has more than the
    shorter the rest of the long one is."""

    shorter: Workload
    longer: Workload
    beyond: float


def parts_of(workload: Workload, places: int, tokens: int) -> Parts | None:
    """Two jobs to play instead of ``workload`` on ``places`` sequences at once; None where it has
    no more than ``tokens`` tokens to generate, or is too short to have a middle."""
    count = max(_LEAST, _WAVES * places)
    if workload.gen_tokens <= tokens or workload.requests < 3 * count:
        return None
    mean = workload.gen_tokens / workload.requests
    count = max(count, min(workload.requests // 3, round(tokens / mean / 3)))
    shorter, longer = sample(workload, count), sample(workload, 2 * count)
    more = longer.gen_tokens - shorter.gen_tokens
    if more <= 0:
        return None
    return Parts(shorter, longer, (workload.gen_tokens - longer.gen_tokens) / more)


def sample(workload: Workload, count: int) -> Workload:
    """``count`` requests at even quantiles of length, in order of arrival: their mean lengths are
    nearly those of all."""
    order = sorted(
        range(workload.requests), key=lambda i: (workload.gen_lens[i], workload.prompt_lens[i])
    )
    chosen = sorted(order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count))

    def of(lens: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(lens[i] for i in chosen)

    return replace(
        workload,
        prompt_lens=of(workload.prompt_lens),
        gen_lens=of(workload.gen_lens),
        max_lens=of(workload.max_lens) if workload.max_lens else (),
    )
