"""What one sweep computes, in tokens and KV blocks: made by the batcher, read by op bodies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive new tokens of one sequence. Positions are ``start .. start + rows - 1``.

    ``blocks`` is the sequence's KV block table, long enough for ``kv_len`` tokens. ``sample``
    says whether a token is drawn after the last row (a decode, or the last prefill chunk).
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sample: bool

    @property
    def rows(self) -> int:
        """Rows the segment adds to the sweep."""
        return len(self.tokens)

    @property
    def kv_len(self) -> int:
        """Tokens in the KV cache once these rows are in it."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Segments that go through attention together."""

    segments: tuple[Segment, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the micro-batch, at most mu."""
        return sum(s.rows for s in self.segments)


@dataclass(frozen=True, slots=True)
class Batch:
    """One sweep's micro-batches; always as many as the policy says, empty ones included."""

    micro_batches: tuple[MicroBatch, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the sweep."""
        return sum(m.rows for m in self.micro_batches)

    @property
    def sampled(self) -> tuple[int, ...]:
        """Sequence ids that draw a token, in the row order of the ``logits`` buffer."""
        return tuple(s.sequence for m in self.micro_batches for s in m.segments if s.sample)

    @property
    def decode_rows(self) -> int:
        """Rows that are decodes (one row that samples and is not a prompt's first)."""
        return sum(
            1
            for m in self.micro_batches
            for s in m.segments
            if s.rows == 1 and s.sample and s.start > 0
        )
