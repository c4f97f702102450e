"""Micro-batches: balanced, un-padded, causal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.batching.batch import Segment
from headrace.batching.microbatch import arrange

shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), max_size=12)


def segments_of(shapes) -> list[Segment]:
    return [
        Segment(i, tuple(range(start, start + rows)), start, (i,), i % 2 == 0)
        for i, (rows, start) in enumerate(shapes)
    ]


@given(shapes, st.integers(1, 5))
def test_every_row_is_placed_once_within_mu_and_pieces_stay_causal(shapes, micro_batches):
    segments = segments_of(shapes)
    rows = sum(s.rows for s in segments)
    mu = max(1, -(-rows // micro_batches))
    batch = arrange(segments, micro_batches, mu)
    assert len(batch.micro_batches) == micro_batches
    assert all(m.rows <= mu for m in batch.micro_batches)
    for segment in segments:
        pieces = [
            p for m in batch.micro_batches for p in m.segments if p.sequence == segment.sequence
        ]
        assert tuple(t for p in pieces for t in p.tokens) == segment.tokens
        assert [p.start for p in pieces] == [p.tokens[0] for p in pieces]
        assert [p.sample for p in pieces] == [False] * (len(pieces) - 1) + [segment.sample]


def test_decodes_are_balanced_by_the_tokens_they_attend():
    lengths = [100, 90, 60, 50, 40, 20]
    batch = arrange([Segment(i, (1,), n, (), True) for i, n in enumerate(lengths)], 2, 4)
    loads = [sum(s.kv_len for s in m.segments) for m in batch.micro_batches]
    assert max(loads) - min(loads) <= 20


def test_segments_keep_the_order_of_their_sequences():
    batch = arrange([Segment(i, (1,), 9 - i, (), True) for i in range(6)], 2, 3)
    for micro in batch.micro_batches:
        assert list(micro.segments) == sorted(micro.segments, key=lambda s: s.sequence)


@given(shapes, st.integers(1, 5), st.integers(1, 40))
def test_no_more_micro_batches_than_the_rows_need_unless_they_are_spread(shapes, count, mu):
    segments = segments_of(shapes)
    rows = sum(s.rows for s in segments)
    mu = max(mu, -(-rows // count))
    batch = arrange(segments, count, mu, spread=False)
    used = [m.rows for m in batch.micro_batches if m.segments]
    assert len(batch.micro_batches) == count
    assert sum(used) == rows
    assert all(used)
    assert len(used) == -(-rows // mu)
    assert [m.rows for m in batch.micro_batches[len(used) :]] == [0] * (count - len(used))
