"""What is said of the next sweeps comes true while nobody ends early."""

from __future__ import annotations

from hypothesis import given, settings

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from tests.batching.test_batcher import jobs


def play(limits, requests):
    """Rows of each sweep of a job that runs to its limits, and what was said before each."""
    batcher, said, rows = Batcher(limits), [], []
    for request in requests:
        batcher.add(request)
    while batcher.has_work:
        outlook = batcher.outlook()
        said.append((outlook.sweeps_left, outlook.rows(), outlook.rows(after=1)))
        batch = batcher.next_batch()
        rows.append(batch.rows)
        batcher.commit(batch, dict.fromkeys(batch.sampled, 7))
    assert batcher.outlook().sweeps_left == batcher.outlook().rows() == 0
    return said, rows


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_a_job_takes_at_least_the_sweeps_that_are_said_to_be_left(job):
    limits, requests = job
    said, rows = play(limits, [request for request, _ in requests])
    for done, (left, now, then) in enumerate(said):
        assert 1 <= left <= len(rows) - done
        assert 0 <= now <= limits.max_rows
        assert 0 <= then <= limits.max_rows


def test_rows_are_foreseen_where_prompts_and_decodes_mix():
    limits = Limits(max_rows=20, max_seqs=4, kv_blocks=99, chunk=16, compute_rows=16)
    requests = [Request(f"{n}", tuple(range(n)), most) for n, most in ((10, 2), (10, 3), (12, 4))]
    said, rows = play(limits, requests)
    assert rows == [16, 17, 2, 2, 1]
    assert [now for _, now, _ in said] == rows
    assert [then for _, _, then in said][1:] == [2, 2, 1, 0]


def test_rows_are_foreseen_where_places_are_few():
    limits = Limits(max_rows=64, max_seqs=1, kv_blocks=9)
    said, rows = play(limits, [Request(f"r{i}", tuple(range(20)), 3) for i in range(3)])
    assert rows == [20, 1, 1] * 3
    assert [now for _, now, _ in said] == rows
    assert [then for _, _, then in said] == [*rows[1:], 0]


def test_rows_are_foreseen_where_blocks_are_few():
    limits = Limits(max_rows=64, max_seqs=8, kv_blocks=4)
    said, rows = play(limits, [Request(f"r{i}", tuple(range(20)), 3) for i in range(6)])
    assert rows == [40, 2, 2] * 3
    assert [then for _, _, then in said] == [*rows[1:], 0]
