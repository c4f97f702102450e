"""Tokens of one growing answer to text, piece by piece, stopping at stop strings.

The text of a token depends on its neighbours (a character may span tokens, a leading space may
vanish at the start of a text), so a short window is decoded twice: with and without the new
tokens. What is given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace.specs.sampling import SamplingParams

CONTEXT = (6, 24)
"""Prompt tokens decoded before the answer, so that its first token keeps its leading space;
the second number where the first would start inside a character."""

LONGEST_WAIT = 24
"""Tokens after which an incomplete character is given up: no valid one spans so many."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    special_ids: frozenset[int]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``."""
        ...


class Detokenizer:
    """Text of one choice. Do not push the token that ends it (EOS, a stop token id).

    ``stopped`` turns true when a stop string was seen; the text is then cut before it and
    ``stop_string`` names it. The stop string that is complete first wins, of those the one
    that starts first. Text that belongs to fewer than ``min_tokens`` tokens cannot stop.
    """

    def __init__(
        self, tokenizer: Decoder, params: SamplingParams, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.stopped = False
        self.stop_string: str | None = None
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        self._min_tokens = params.min_tokens
        self._stops = StopStrings(params.stop)
        self._tokens = 0
        self._context: list[int] = []
        self._context_length = 0
        self._waiting: list[int] = []
        for count in CONTEXT:
            self._context = list(prompt_ids[-count:])
            text = self._decode(self._context)
            self._context_length = len(text)
            if not text.startswith("\ufffd"):
                break

    def push(self, token: int) -> str:
        """Add a token; return the text that became final. Empty once ``stopped``."""
        if self.stopped:
            return ""
        self._tokens += 1
        if token in self._skipped:
            return ""
        self._waiting.append(token)
        text = self._decode(self._context + self._waiting)
        if text.endswith("\ufffd") and len(self._waiting) < LONGEST_WAIT:
            return ""
        return self._accept(text)

    def finish(self) -> str:
        """Return what was held back: text that might have become a stop string, and U+FFFD for
        a character that never became complete."""
        if self.stopped:
            return ""
        text = self._accept(self._decode(self._context + self._waiting)) if self._waiting else ""
        return text if self.stopped else text + self._stops.release()

    def _accept(self, text: str) -> str:
        """Make the waiting tokens final, ``text`` being that of the context and them."""
        new = text[self._context_length :]
        if new:
            self._context, self._waiting = self._waiting, []
            self._context_length = len(self._decode(self._context))
        elif len(self._waiting) >= LONGEST_WAIT:
            self._waiting = []  # ids without any text
        if self._tokens < self._min_tokens:
            return new
        out = self._stops.feed(new)
        if self._stops.found is not None:
            self.stopped, self.stop_string = True, self._stops.found
        return out

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""


class StopStrings:
    """Passes text on, holding back what may turn out to be the start of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> str:
        """Add text; return what is surely before any stop string. ``found`` names a match."""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def release(self) -> str:
        """Give up waiting: return the held text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a start of ``stop`` but not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
