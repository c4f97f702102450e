"""How to draw tokens: the parameters users know from vLLM, checked at construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.errors import ParameterError


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one request. ``temperature == 0`` is greedy; ``top_k == 0`` is no limit.

    ``logprobs`` asks for that many alternatives beside the drawn token (0: the drawn one
    only, None: none). ``max_tokens`` None means to the end of the context.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, nothing in (("stop", ()), ("stop_token_ids", ()), ("logit_bias", {})):
            if getattr(self, name) is None:  # as vLLM writes it
                object.__setattr__(self, name, nothing)
        for name in ("stop", "stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self._check()

    def _check(self) -> None:
        checks = (
            ("n", 1 <= self.n <= 128, "1 to 128"),
            ("temperature", 0 <= self.temperature <= 100, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 (no limit) or more"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more"),
            ("min_tokens", 0 <= self.min_tokens <= (self.max_tokens or math.inf), "0 to max"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "0 to 20"),
            ("stop", all(isinstance(s, str) and s for s in self.stop), "non-empty strings"),
            ("allowed_token_ids", self.allowed_token_ids != (), "at least one id, or None"),
        )
        for name, fine, expected in checks:
            if not fine:
                raise ParameterError(name, expected=expected, got=getattr(self, name))
