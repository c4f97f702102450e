"""Steps between logits and a draw, in place on rows of V entries.

Truncation works on weights ``exp(logit - max)`` and sets to 0 what may not be drawn. Only a
top-p without a top-k sorts the vocabulary: by value, with NumPy, which is 20 times faster than
``torch.sort`` (0.15 ms against 2.9 ms for 49,152 entries on a 2-core AVX2 host, November 2026).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
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


def truncate(weights: Tensor, params: Sequence[SamplingParams | None]) -> None:
    """Zero the weights [B, V] (largest 1 per row) that min-p, top-k and top-p rule out.

    Rows whose entry in ``params`` is None are left alone. Equal weights at the edge are kept
    in token-id order, so that exactly the asked number remains.
    """
    for line, p in zip(weights, params, strict=True):
        if p is not None and p.min_p > 0:
            line.masked_fill_(line < p.min_p, 0.0)
    for b, p in enumerate(params):
        if p is not None and p.top_p < 1 and not p.top_k:
            _keep(weights[b], _descending(weights[b]), p.top_p)
    limited = [b for b, p in enumerate(params) if p is not None and p.top_k]
    if not limited:
        return
    counts = [min(weights.shape[1], p.top_k) for p in params if p is not None and p.top_k]
    chosen = weights if len(limited) == len(weights) else weights[torch.tensor(limited)]
    highest = chosen.topk(max(counts), dim=-1).values  # [limited, most], descending
    for b, top, count in zip(limited, highest, counts, strict=True):
        p = params[b]
        assert p is not None
        _keep(weights[b], top[:count], p.top_p)


def _descending(line: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(line.numpy())[::-1].copy())


def _keep(line: Tensor, highest: Tensor, top_p: float) -> None:
    """Keep in ``line`` [V] the fewest of its ``highest`` entries that hold ``top_p`` of their mass.

    Entries equal to the last one kept stay in token-id order, up to the number to keep.
    """
    count = len(highest)
    if top_p < 1:
        sums = highest.cumsum(dim=0, dtype=torch.float64)
        count = min(count, int(torch.searchsorted(sums, top_p * float(sums[-1])).item()) + 1)
    least = float(highest[count - 1])
    ties = line == least
    line.masked_fill_(line < least, 0.0)
    surplus = int((line > 0).sum()) - count
    if surplus > 0 and least > 0:
        line[ties.nonzero()[:, 0][-surplus:]] = 0.0
