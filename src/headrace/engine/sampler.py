"""From logits to tokens. Shapes: S rows that sample, V vocabulary, B rows of one block.

A token is drawn by inverting the cumulative distribution in token-id order at one uniform
number, and that number is a hash of (seed, request seed, request key, choice, position): what
a request draws depends neither on its neighbours nor on when it runs. Greedy rows without
adjustments share one argmax; a tie goes to the lowest id.

The steps and their order are vLLM's: allowed ids, minimum length, bias, penalties, temperature,
min-p, top-k, top-p. Log-probabilities are those of the raw logits, before all of these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.engine.filters import penalise, restrict
from headrace.errors import HeadraceError, NumericsError, ParameterError
from headrace.kernels.draws import Best, Draw, Rank, Ranked
from headrace.kernels.select import select
from headrace.specs.sampling import SamplingParams
from headrace.specs.scratch import SAMPLE_BLOCK_BYTES as BLOCK_BYTES
from headrace.specs.scratch import SAMPLE_ROW_BYTES as ROW_BYTES

GREEDY_BELOW = 1e-5
"""Temperatures under this one draw the most likely token (as vLLM)."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Who a row of logits belongs to. ``position`` counts the tokens generated so far.

    ``prompt`` and ``generated`` are read only by penalties, ``eos_ids`` only before
    ``min_tokens`` tokens were generated.
    """

    params: SamplingParams
    key: str
    choice: int = 0
    position: int = 0
    prompt: Sequence[int] = ()
    generated: Sequence[int] = ()
    eos_ids: frozenset[int] = frozenset()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.params.temperature < GREEDY_BELOW

    @property
    def adjusted(self) -> bool:
        """Whether logits change before the draw (temperature and truncation apart)."""
        p = self.params
        return (
            self.position < p.min_tokens
            or p.repetition_penalty != 1.0
            or p.frequency_penalty != 0.0
            or p.presence_penalty != 0.0
            or bool(p.logit_bias)
            or p.allowed_token_ids is not None
        )


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token; ``top`` lists the likeliest (token, logprob) pairs, the best one first.

    Log-probabilities are rounded to 1e-6. Both are None unless the request asked for them.
    ``fault`` is set, and ``token`` means nothing, where the logits were not finite.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None
    fault: NumericsError | None = None


class Draws(Protocol):
    """The arithmetic: contracts in ``kernels.reference.draws``."""

    @property
    def best_tokens(self) -> Callable[[Tensor], list[Best]]:
        """The likeliest token of each row."""
        ...

    @property
    def draw_tokens(self) -> Callable[[Tensor, Sequence[Draw]], list[int]]:
        """A token for each draw."""
        ...

    @property
    def rank_tokens(self) -> Callable[[Tensor, Sequence[Rank]], list[Ranked]]:
        """The likeliest tokens, and log sum exp, of some rows."""
        ...


class Sampler:
    """Draws one token per row of logits, with the arithmetic of ``kernels``. Holds no state
    but the seed."""

    def __init__(self, seed: int, vocab: int, kernels: Draws | None = None) -> None:
        self.seed = seed
        self.vocab = vocab
        self._kernels = kernels or select("reference")

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """Draw a token per row of ``logits`` [S, V] fp32, which is left as it is.

        A row that holds NaN or an infinity, or does so once bias and penalties were applied,
        draws nothing: its ``fault`` names the request. Raises HeadraceError for a wrong shape.
        """
        if logits.shape != (len(rows), self.vocab):
            raise HeadraceError(
                "shape of the logits",
                expected=(len(rows), self.vocab),
                got=tuple(logits.shape),
            )
        if not rows:
            return []
        best = self._kernels.best_tokens(logits)
        tokens = [b.token for b in best]
        bad = [i for i, b in enumerate(best) if not b.all_finite]
        faults = {i: _fault(logits[i], rows[i], "logits") for i in bad}
        fine = [i for i in range(len(rows)) if i not in faults]
        plain = [i for i in fine if not rows[i].greedy and not rows[i].adjusted]
        for block in self._blocks(plain):
            drawn = self._draw(logits, best, [(i, rows[i]) for i in block])
            for i, token in zip(block, drawn, strict=True):
                tokens[i] = token
        for block in self._blocks([i for i in fine if rows[i].adjusted]):
            drawn = self._draw_adjusted(logits, rows, block, faults)
            for i, token in zip(block, drawn, strict=True):
                tokens[i] = token
        results = [SampledToken(token, fault=faults.get(i)) for i, token in enumerate(tokens)]
        asked = [i for i in fine if i not in faults and rows[i].params.logprobs is not None]
        for block in self._blocks(asked):
            self._fill_logprobs(logits, best, rows, block, results)
        return results

    def _blocks(self, indices: list[int]) -> Iterator[list[int]]:
        size = max(1, BLOCK_BYTES // (ROW_BYTES * self.vocab))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

    def _draw_adjusted(
        self,
        logits: Tensor,
        rows: Sequence[SampleRow],
        block: list[int],
        faults: dict[int, NumericsError],
    ) -> list[int]:
        """Tokens of the rows in ``block``, whose logits change before the draw; adds to
        ``faults``."""
        x = logits[torch.tensor(block)]  # [B, V], a copy
        members = [rows[i] for i in block]
        for line, row in zip(x, members, strict=True):
            _adjust(line, row)
        best = self._kernels.best_tokens(x)
        tokens = [b.token for b in best]
        bad = [b for b, found in enumerate(best) if not found.finite]
        faults |= {block[b]: _fault(x[b], members[b], "adjusted logits") for b in bad}
        random = [(b, row) for b, row in enumerate(members) if not row.greedy and b not in bad]
        for (b, _), token in zip(random, self._draw(x, best, random), strict=True):
            tokens[b] = token
        return tokens

    def _draw(
        self, x: Tensor, best: Sequence[Best], rows: Sequence[tuple[int, SampleRow]]
    ) -> list[int]:
        """Tokens of some ``rows`` (number in ``x`` [S, V], and whose it is)."""
        if not rows:
            return []
        draws = [
            Draw(
                row=i,
                top=best[i].value,
                temperature=max(row.params.temperature, GREEDY_BELOW),
                min_p=row.params.min_p,
                top_k=row.params.top_k,
                top_p=row.params.top_p,
                uniform=self._uniform(row),
            )
            for i, row in rows
        ]
        return self._kernels.draw_tokens(x, draws)

    def _uniform(self, row: SampleRow) -> float:
        return keyed_uniform(self.seed, row.params.seed, row.key, row.choice, row.position)

    def _fill_logprobs(
        self,
        logits: Tensor,
        best: Sequence[Best],
        rows: Sequence[SampleRow],
        block: list[int],
        results: list[SampledToken],
    ) -> None:
        asked = [Rank(i, best[i].value, rows[i].params.logprobs or 0) for i in block]
        for i, ranked in zip(block, self._kernels.rank_tokens(logits, asked), strict=True):
            token, total = results[i].token, ranked.log_sum
            results[i] = SampledToken(
                token,
                round(float(logits[i, token]) - total, 6),
                tuple((t, round(value - total, 6)) for t, value in ranked.best),
            )


def keyed_uniform(
    seed: int, request_seed: int | None, key: str, choice: int, position: int
) -> float:
    """A uniform number in [0, 1) that is a pure function of its arguments."""
    text = f"{seed}|{request_seed}|{choice}|{position}|{key}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def check_params(params: SamplingParams, vocab: int, eos_ids: frozenset[int]) -> None:
    """Refuse, before any work, what only the vocabulary shows to be impossible.

    Raises ParameterError for token ids outside the vocabulary, and for allowed ids of which
    every one is forbidden until ``min_tokens``.
    """
    groups = {
        "logit_bias": tuple(params.logit_bias),
        "allowed_token_ids": params.allowed_token_ids or (),
        "stop_token_ids": params.stop_token_ids,
    }
    for name, ids in groups.items():
        for token in ids:
            if not 0 <= token < vocab:
                raise ParameterError(f"{name}: token id", expected=f"0 to {vocab - 1}", got=token)
    if any(not math.isfinite(bias) for bias in params.logit_bias.values()):
        raise ParameterError("logit_bias", expected="finite numbers", got=params.logit_bias)
    allowed = params.allowed_token_ids
    if allowed is not None and params.min_tokens and not set(allowed) - _enders(params, eos_ids):
        raise ParameterError(
            "min_tokens with allowed_token_ids",
            expected="an allowed id that does not end the text",
            got=allowed,
        )


def _fault(line: Tensor, row: SampleRow, what: str) -> NumericsError:
    """The error of a row of logits [V] that are not finite numbers."""
    return NumericsError(
        f"{what} of request {row.key!r} at generated token {row.position}",
        expected="finite numbers",
        got=f"{line.amin().item()} to {line.amax().item()}",
    )


def _adjust(line: Tensor, row: SampleRow) -> None:
    """Apply bias, bans and penalties to the logits [V] of one row, in place."""
    params = row.params
    blocked: frozenset[int] = frozenset()
    if row.position < params.min_tokens:
        blocked = _enders(params, row.eos_ids)
    restrict(line, params.allowed_token_ids, blocked)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias))
        line[ids] += torch.tensor([float(b) for b in params.logit_bias.values()])
    penalise(line, params, row.prompt, row.generated)


def _enders(params: SamplingParams, eos_ids: frozenset[int]) -> frozenset[int]:
    ends = frozenset(params.stop_token_ids)
    return ends if params.ignore_eos else ends | eos_ids
