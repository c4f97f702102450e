"""From logits to tokens, in torch: the definition. Shapes: S rows, V vocabulary.

A token is drawn by inverting the cumulative distribution in id order at one uniform number.
Truncation works on weights ``exp((logit - max) / temperature)`` and sets to 0 what may not be
drawn. Only a top-p without a top-k sorts the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.draws import Best, Draw, Rank, Ranked


def best_tokens(logits: Tensor) -> list[Best]:
    """The first of the largest logits of each row [S, V]; NaN counts as the largest."""
    best = logits.max(dim=-1)
    finite = best.values.isfinite()
    all_finite = finite & logits.amin(dim=-1).isfinite()
    columns = (best.indices, best.values, finite, all_finite)
    return [Best(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def draw_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each of ``draws``, from the rows of ``logits`` [S, V] that they name.

    Allocates copies of those rows: 24 bytes for each entry.
    """
    x = logits[torch.tensor([d.row for d in draws])]
    tops = torch.tensor([[d.top] for d in draws])
    temperatures = torch.tensor([[d.temperature] for d in draws])
    x.sub_(tops).div_(temperatures).exp_()  # weights, the largest is 1
    truncate(x, draws)
    sums = x.cumsum(dim=-1, dtype=torch.float64)  # serial along V: no row sees another
    targets = sums[:, -1:] * torch.tensor([[d.uniform] for d in draws], dtype=torch.float64)
    tokens: list[int] = torch.searchsorted(sums, targets, right=True)[:, 0].tolist()
    return tokens


def rank_tokens(logits: Tensor, ranks: Sequence[Rank]) -> list[Ranked]:
    """log sum exp, and the likeliest tokens, of the rows that ``ranks`` name."""
    x = logits[torch.tensor([r.row for r in ranks])]
    most = min(x.shape[1], max(r.most for r in ranks))
    # stable: of equal ones the lower ids come first, at the edge too
    ordered = x.sort(dim=-1, descending=True, stable=True)
    values, ids = (t[:, :most].tolist() for t in ordered)
    largest = x.amax(dim=-1, keepdim=True)
    sums = x.sub_(largest).exp_().sum(dim=-1, dtype=torch.float64)
    totals: list[float] = (largest[:, 0].double() + sums.log()).tolist()
    found = []
    for rank, total, value, token in zip(ranks, totals, values, ids, strict=True):
        found.append(Ranked(total, list(zip(token, value, strict=True))[: rank.most]))
    return found


def truncate(weights: Tensor, draws: Sequence[Draw | None]) -> None:
    """Zero the weights [B, V] (largest 1 per row) that min-p, top-k and top-p rule out.

    Rows whose entry in ``draws`` is None are left alone. Equal weights at the edge are kept
    in token-id order, so that exactly the asked number remains.
    """
    for line, d in zip(weights, draws, strict=True):
        if d is not None and d.min_p > 0:
            line.masked_fill_(line < d.min_p, 0.0)
    for line, d in zip(weights, draws, strict=True):
        if d is not None and d.top_k:
            _keep(line, line.topk(min(len(line), d.top_k)).values, d.top_p)
        elif d is not None and d.top_p < 1:
            _keep(line, _descending(line), d.top_p)


def _descending(line: Tensor) -> Tensor:
    """Sorted with NumPy, which is 20 times faster here than ``torch.sort``."""
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
