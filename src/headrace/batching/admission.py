"""How much KV a request is expected to take: the rule by which waiting requests are let in.

Expected footprint = prompt + running mean of finished lengths, starting at the request's
maximum. Underestimates are repaired by preemption, so the rule may be optimistic.
"""

from __future__ import annotations

from headrace.batching.blocks import blocks_for
from headrace.batching.request import Sequence


class Footprint:
    """Running mean of finished generation lengths, and what it says of a sequence."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.finished = 0
        self.finished_tokens = 0

    def record(self, sequence: Sequence) -> None:
        """Learn from a finished sequence."""
        self.finished += 1
        self.finished_tokens += len(sequence.generated)

    def expected_blocks(self, sequence: Sequence) -> int:
        """Blocks the sequence is expected to hold at its end (past the mean: one block more)."""
        most = sequence.request.max_tokens
        if self.finished:
            mean = -(-self.finished_tokens // self.finished)
            past = len(sequence.generated)
            most = min(most, mean if past < mean else past + self.block)
        return blocks_for(len(sequence.request.tokens) + most - 1, self.block)
