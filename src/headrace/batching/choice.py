"""Who takes part in a sweep: the batcher's decision, before it is written out in tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.batching.request import Sequence


@dataclass(slots=True)
class Choice:
    """``decodes``: one row each. ``chunks``: (sequence, rows) of prompts (or of recomputation)."""

    decodes: list[Sequence] = field(default_factory=list)
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the sweep."""
        return len(self.decodes) + sum(rows for _, rows in self.chunks)

    @property
    def samples(self) -> int:
        """Sequences that draw a token: all decodes and the chunks that reach their end."""
        return len(self.decodes) + sum(s.computed + n == s.length for s, n in self.chunks)

    def shares(self) -> list[tuple[Sequence, int]]:
        """(sequence, rows), decodes first."""
        return [(s, 1) for s in self.decodes] + self.chunks
