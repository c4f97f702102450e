"""Changes to logits before a draw, in place on one row of V entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from headrace.specs.sampling import SamplingParams


def restrict(line: Tensor, allowed: Sequence[int] | None, blocked: Collection[int]) -> None:
    """Set logits [V] outside ``allowed`` (None: all are) and inside ``blocked`` to -inf."""
    if allowed is not None:
        ids = torch.tensor(list(allowed))
        kept = line[ids]
        line.fill_(-torch.inf)
        line[ids] = kept
    if blocked:
        line[
            torch.tensor(sorted(b for b in blocked if b < len(line)), dtype=torch.int64)
        ] = -torch.inf


def penalise(
    line: Tensor, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]
) -> None:
    """Lower logits [V] of tokens seen before.

    The repetition penalty divides (positive) or multiplies (negative) logits of prompt and
    generated tokens; frequency and presence are subtracted, for generated tokens only.
    """
    if params.repetition_penalty != 1.0:
        ids = torch.tensor(sorted({*prompt, *generated}), dtype=torch.int64)
        seen = line[ids]
        r = params.repetition_penalty
        line[ids] = torch.where(seen > 0, seen / r, seen * r)
    if generated and (params.frequency_penalty or params.presence_penalty):
        counts = Counter(generated)
        ids = torch.tensor(list(counts))
        times = torch.tensor([float(n) for n in counts.values()])
        line[ids] -= params.frequency_penalty * times + params.presence_penalty
