"""What a finished request looks like, with the names vLLM's users know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.engine.sampler import SampledToken


class Logprob(NamedTuple):
    """Log-probability of one token. ``rank`` counts from 1; None when it was not looked at."""

    logprob: float
    rank: int | None
    decoded_token: str
    token_bytes: bytes


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice. ``finish_reason`` is "stop" or "length" (None while it grows).

    ``stop_reason`` is the stop string or stop token id that ended it, None for EOS.
    ``logprobs`` has a mapping per token: the drawn one first, then the likeliest ones.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All choices of one request. ``prompt`` is None when token ids or messages were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool = True

    @property
    def generated_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(o.token_ids) for o in self.outputs)


def token_logprobs(
    sampled: SampledToken, token_bytes: Callable[[int], bytes]
) -> dict[int, Logprob]:
    """The mapping of one drawn token: itself first, then the likeliest ones in order."""
    top: Sequence[tuple[int, float]] = sampled.top or ()
    ranks = {token: rank for rank, (token, _) in enumerate(top, start=1)}
    assert sampled.logprob is not None
    entries = {sampled.token: sampled.logprob} | dict(top)
    return {token: _describe(token, value, ranks, token_bytes) for token, value in entries.items()}


def _describe(
    token: int, value: float, ranks: dict[int, int], token_bytes: Callable[[int], bytes]
) -> Logprob:
    data = token_bytes(token)
    return Logprob(value, ranks.get(token), data.decode("utf-8", "replace"), data)
