"""What is asked (Request) and how far one answer to it has come (Sequence)."""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """A tokenised prompt and its limits.

    ``choices`` answers of at most ``max_tokens`` tokens each are generated. ``tokens`` may be
    any sequence of ints (the simulator passes a ``range``). ``payload`` travels along, unread.
    """

    key: str
    tokens: collections.abc.Sequence[int]
    max_tokens: int
    choices: int = 1
    payload: Any = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making; only the batcher changes it.

    ``computed`` tokens are in the KV cache, in the blocks of the table ``blocks`` (in order).
    ``generated`` survives preemption: what is lost is recomputed from it, up to ``seen``, the most
    that ``computed`` has been.
    """

    id: int
    request: Request
    choice: int
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    seen: int = 0
    blocks: tuple[int, ...] = ()
    prompt: int = field(init=False)  # its tokens

    def __post_init__(self) -> None:
        self.prompt = len(self.request.tokens)

    @property
    def length(self) -> int:
        """Tokens known: the prompt and what was generated."""
        return self.prompt + len(self.generated)

    @property
    def partial(self) -> bool:
        """Whether more than its newest token is missing from the cache."""
        known = len(self.generated)
        return not known or self.computed + 1 < self.prompt + known

    @property
    def left(self) -> int:
        """Tokens it may still generate."""
        return self.request.max_tokens - len(self.generated)

    def tokens_between(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens at positions ``start .. stop - 1``."""
        prompt = self.request.tokens
        count = len(prompt)
        head = tuple(prompt[start : min(stop, count)]) if start < count else ()
        return head + tuple(self.generated[max(start - count, 0) : max(stop - count, 0)])
