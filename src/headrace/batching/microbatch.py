"""Spread segments over micro-batches, balanced and un-padded (Cao et al. 2024, Algorithm 2).

Longest first, each to the micro-batch with the fewest KV tokens to attend among those with
room. A chunk that fits nowhere whole is cut, its pieces in ascending micro-batches, so that
running micro-batches in order keeps attention causal.
"""

from __future__ import annotations

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.specs.policy import Policy


def arrange(segments: list[Segment], micro_batches: int, mu: int, *, spread: bool = True) -> Batch:
    """A batch of exactly ``micro_batches`` micro-batches, none above ``mu`` rows.

    All are filled evenly, or only as many as the rows need unless ``spread``. The rows must
    fit: ``sum(rows) <= micro_batches * mu``.
    """
    used = micro_batches if spread else needed(sum(s.rows for s in segments), micro_batches, mu)
    empty = (MicroBatch(),) * (micro_batches - used)
    if used == 1:
        return Batch((MicroBatch(tuple(segments)), *empty))
    bins = [_Bin(mu) for _ in range(used)]
    for segment in sorted(segments, key=lambda s: (-s.rows, -s.kv_len, s.sequence)):
        open_bins = [b for b in bins if b.room >= segment.rows]
        if open_bins:
            min(open_bins, key=lambda b: (b.load, -b.room)).put(segment)
        else:
            _cut_over(segment, bins)
    return Batch((*(b.close() for b in bins), *empty))


def used_micro_batches(rows: int, policy: Policy) -> int:
    """In how many micro-batches the batcher puts ``rows``: all where they overlap each other."""
    if policy.on_device:
        return policy.micro_batches
    return needed(rows, policy.micro_batches, policy.mu)


def needed(rows: int, micro_batches: int, mu: int) -> int:
    """Micro-batches that ``rows`` need, at least one."""
    return max(1, min(micro_batches, -(-rows // mu)))


class _Bin:
    def __init__(self, mu: int) -> None:
        self.room = mu
        self.load = 0
        self.segments: list[Segment] = []

    def put(self, segment: Segment) -> None:
        self.room -= segment.rows
        self.load += segment.kv_len
        self.segments.append(segment)

    def close(self) -> MicroBatch:
        return MicroBatch(tuple(sorted(self.segments, key=lambda s: s.sequence)))


def _cut_over(segment: Segment, bins: list[_Bin]) -> None:
    done = 0
    for bin_ in bins:
        piece = segment.tokens[done : done + bin_.room]
        if not piece:
            continue
        start, done = segment.start + done, done + len(piece)
        last = done == segment.rows
        bin_.put(Segment(segment.sequence, piece, start, segment.blocks, last and segment.sample))
        if last:
            return
    raise AssertionError("segments exceed the rows of all micro-batches")
