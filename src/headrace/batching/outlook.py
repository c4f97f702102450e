"""What the next sweeps will be like: how many there are at least, how many rows they have.

A sweep's list is chosen, and its reads begin, before it is known who takes part. Both answers
suppose that nobody ends before its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace.batching.limits import Limits
from headrace.batching.request import Sequence


@dataclass(frozen=True)
class Outlook:
    """A batcher at one moment. ``expected_blocks`` is its rule of admission."""

    active: tuple[Sequence, ...]
    waiting: tuple[Sequence, ...]
    expected_blocks: Callable[[Sequence], int]
    limits: Limits

    @property
    def sweeps_left(self) -> int:
        """Sweeps that everything now known takes at least."""
        known = (*self.active, *self.waiting)
        if not known:
            return 0
        prompts = -(-_unread(known) // self.limits.prefill_rows(0))
        return max(prompts, *(s.left for s in known))

    def rows(self, after: int = 0) -> int:
        """Rows expected of the next sweep, or of the one after it (``after`` 1)."""
        assert after in (0, 1), after
        present = [*self.active, *self._entering(self.active, self.waiting)]
        unread = _unread(present)
        if after:
            unread -= min(unread, self._room(present))
            stay = [s for s in present if s.left > 1]
            present = [
                *stay,
                *self._entering(stay, self.waiting[len(present) - len(self.active) :]),
            ]
            unread += _unread(present[len(stay) :])
            decodes = len(stay)
        else:
            decodes = sum(not s.partial for s in present)
        return min(decodes + min(unread, self.limits.prefill_rows(decodes)), self.limits.max_rows)

    def _room(self, present: Iterable[Sequence]) -> int:
        return self.limits.prefill_rows(sum(not s.partial for s in present))

    def _entering(self, present: Iterable[Sequence], waiting: Iterable[Sequence]) -> list[Sequence]:
        """Who of ``waiting`` is let in beside ``present``."""
        held = list(present)
        reserved = sum(map(self.expected_blocks, held))
        entering: list[Sequence] = []
        for sequence in waiting:
            reserved += self.expected_blocks(sequence)
            crowded = bool(held or entering) and reserved > self.limits.kv_blocks
            if crowded or len(held) + len(entering) >= self.limits.max_seqs:
                break
            entering.append(sequence)
        return entering


def _unread(sequences: Iterable[Sequence]) -> int:
    """Rows still to be computed before each of them decodes."""
    return sum(s.length - s.computed for s in sequences if s.partial)
