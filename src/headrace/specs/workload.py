"""A job in lengths: what the planner and the simulator need to know of a batch file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Prompt and generation lengths in tokens, one entry per sequence, in order of arrival.

    ``assumed`` is True when the generation lengths are a guess (a prediction from it has a
    wide interval) and False when they are known or realised.
    """

    prompt_lens: tuple[int, ...]
    gen_lens: tuple[int, ...]
    assumed: bool = True

    @property
    def requests(self) -> int:
        """Number of sequences."""
        return len(self.prompt_lens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens to prefill."""
        return sum(self.prompt_lens)

    @property
    def gen_tokens(self) -> int:
        """Tokens to generate."""
        return sum(self.gen_lens)

    @classmethod
    def uniform(cls, requests: int, prompt_len: int, gen_len: int) -> Workload:
        """``requests`` sequences of equal, known lengths."""
        return cls((prompt_len,) * requests, (gen_len,) * requests, assumed=False)
