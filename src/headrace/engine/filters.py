"""Steps between logits and a draw, in place on rows of V entries.

Truncation works on weights ``exp(logit - max)`` and sets to 0 what may not be drawn. Nothing
sorts the vocabulary unless a top-p needs more than ``PROBE`` tokens to gather its mass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from headrace.specs.sampling import SamplingParams

PROBE = 1024
"""Likeliest tokens looked at first for top-p; they nearly always hold the mass it asks for."""


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
    limited = [b for b, p in enumerate(params) if p is not None and (p.top_k or p.top_p < 1)]
    if not limited:
        return
    vocab = weights.shape[1]
    wanted = [min(vocab, _limits(params[b])[0] or PROBE) for b in limited]
    chosen = weights if len(limited) == len(weights) else weights[torch.tensor(limited)]
    highest = chosen.topk(max(wanted), dim=-1).values  # [limited, max wanted], descending
    for b, top, count in zip(limited, highest, wanted, strict=True):
        _keep(weights[b], top[:count], *_limits(params[b]))


def _limits(p: SamplingParams | None) -> tuple[int, float]:
    assert p is not None
    return p.top_k, p.top_p


def _keep(line: Tensor, highest: Tensor, top_k: int, top_p: float) -> None:
    """Keep in ``line`` [V] what top-k and then top-p allow; ``highest`` is its sorted head."""
    kept = len(highest)
    if top_p < 1:
        total = float(highest.sum(dtype=torch.float64) if top_k else line.sum(dtype=torch.float64))
        kept = _mass_count(highest, top_p * total)
        if kept > len(highest):
            highest = line.sort(descending=True).values
            kept = min(len(highest), _mass_count(highest, top_p * total))
    _keep_count(line, float(highest[kept - 1]), kept)


def _mass_count(highest: Tensor, mass: float) -> int:
    """How many of the descending weights reach ``mass``; one more than there are if none do."""
    sums = highest.cumsum(dim=0, dtype=torch.float64)
    return int(torch.searchsorted(sums, mass).item()) + 1


def _keep_count(line: Tensor, least: float, count: int) -> None:
    """Zero all of ``line`` [V] but its ``count`` largest entries, the smallest being ``least``."""
    ties = line == least
    line.masked_fill_(line < least, 0.0)
    surplus = int((line > 0).sum()) - count
    if surplus > 0 and least > 0:
        line[ties.nonzero()[:, 0][-surplus:]] = 0.0
