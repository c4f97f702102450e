"""Lengths in tokens as people write them: ``128``, or ``32-512`` for any from 32 to 512."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from headrace.errors import UsageError

_WRITTEN = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?")


@dataclass(frozen=True)
class LengthRange:
    """Whole numbers of tokens from ``low`` to ``high``, both included, each as likely as any."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, flag: str) -> LengthRange:
        """What ``text`` says: one number (``low`` and ``high`` are equal), or two with a dash
        between them. Raises UsageError that names ``flag``."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise UsageError(
                flag,
                expected="a number of tokens, or a range of them",
                got=f"{text!r:.60}",
                hint=f"{flag} 128, or {flag} 32-512",
            )
        low = int(match[1])
        high = low if match[2] is None else int(match[2])
        if low > high:
            raise UsageError(
                flag, expected="a range from less to more", got=text, hint=f"{flag} {high}-{low}"
            )
        if low < 1:
            raise UsageError(flag, expected="at least 1 token", got=text)
        return cls(low, high)

    @property
    def varies(self) -> bool:
        """Whether there is anything to draw."""
        return self.low < self.high

    def draw(self, count: int, random: Random) -> tuple[int, ...]:
        """``count`` lengths, from numbers of ``random`` only where they vary. Costs about a tenth
        of a microsecond each."""
        if not self.varies:
            return (self.low,) * count
        span, number = self.high - self.low + 1, random.random
        return tuple([self.low + int(number() * span) for _ in range(count)])

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" if self.varies else str(self.low)
