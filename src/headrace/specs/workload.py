"""A job in lengths: what the planner and the simulator need to know of a batch file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from headrace.errors import UsageError
from headrace.specs.lengths import LengthRange


@dataclass(frozen=True)
class Workload:
    """Prompt and generation lengths in tokens, one entry per sequence, in order of arrival.

    ``assumed`` is True when the generation lengths are a guess (a prediction from it has a
    wide interval) and False when they are known or realised. ``max_lens`` are the limits that
    requests set on their generation; where not given, the lengths themselves.
    """

    prompt_lens: tuple[int, ...]
    gen_lens: tuple[int, ...]
    assumed: bool = True
    max_lens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("gen_lens", "max_lens"):
            count = len(getattr(self, name))
            if count != len(self.prompt_lens) and not (name == "max_lens" and not count):
                raise UsageError(f"workload {name}", expected=len(self.prompt_lens), got=count)

    @property
    def requests(self) -> int:
        """Number of sequences."""
        return len(self.prompt_lens)

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens to prefill."""
        return sum(self.prompt_lens)

    @cached_property
    def gen_tokens(self) -> int:
        """Tokens to generate."""
        return sum(self.gen_lens)

    @property
    def limits(self) -> tuple[int, ...]:
        """Most tokens each sequence may generate."""
        return self.max_lens or self.gen_lens

    @cached_property
    def longest(self) -> int:
        """Most tokens that one sequence can have in the KV cache (its last draw never is)."""
        pairs = zip(self.prompt_lens, self.limits, strict=True)
        return max((prompt + most - 1 for prompt, most in pairs), default=1)

    @cached_property
    def by_length(self) -> tuple[int, ...]:
        """Places of the sequences, shortest generation first, among equals the shortest prompt:
        sorted once, however many plays ask."""
        keys = list(zip(self.gen_lens, self.prompt_lens, strict=True))
        return tuple(sorted(range(self.requests), key=keys.__getitem__))

    def joined(self, other: Workload) -> Workload:
        """Both jobs as one, this one first."""
        return Workload(
            self.prompt_lens + other.prompt_lens,
            self.gen_lens + other.gen_lens,
            self.assumed or other.assumed,
            self.limits + other.limits,
        )

    def realised(self, gen_lens: tuple[int, ...]) -> Workload:
        """The same job once its generation lengths are known."""
        return replace(self, gen_lens=gen_lens, assumed=False, max_lens=self.limits)

    @classmethod
    def uniform(cls, requests: int, prompt_len: int, gen_len: int) -> Workload:
        """``requests`` sequences of equal, known lengths."""
        return cls((prompt_len,) * requests, (gen_len,) * requests, assumed=False)

    @classmethod
    def drawn(cls, requests: int, prompt: LengthRange, gen: LengthRange, seed: int) -> Workload:
        """``requests`` sequences of known lengths, drawn from ``seed``: all prompts, then all
        generations. Each limit is its own length."""
        random = Random(seed)
        prompts = prompt.draw(requests, random)
        return cls(prompts, gen.draw(requests, random), assumed=False)

    @classmethod
    def guessed(
        cls, prompt_lens: tuple[int, ...], max_lens: tuple[int, ...], share: float = 0.6
    ) -> Workload:
        """A job before it ran: each sequence is taken to use ``share`` of its limit."""
        guess = tuple(max(1, round(most * share)) for most in max_lens)
        return cls(prompt_lens, guess, assumed=True, max_lens=max_lens)
