"""The batcher's promises: nothing lost, nothing twice, limits kept, always some progress."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batching.batch import Batch
from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from headrace.errors import LineError, UsageError
from headrace.specs.policy import Policy


@st.composite
def jobs(draw):
    block = draw(st.sampled_from([1, 2, 4, 16]))
    blocks = draw(st.integers(1, 24))
    seqs = draw(st.integers(1, 6))
    limits = Limits(
        max_rows=draw(st.integers(seqs, seqs + 12)),
        max_seqs=seqs,
        kv_blocks=blocks,
        kv_block=block,
        micro_batches=draw(st.integers(1, 5)),
        chunk=draw(st.integers(1, 8)),
        compute_rows=draw(st.sampled_from([1, 5, 1 << 30])),
    )
    most = blocks * block
    requests = []
    for key in range(draw(st.integers(1, 8))):
        prompt = draw(st.integers(1, max(1, min(most, 20))))
        gen = draw(st.integers(1, max(1, min(most - prompt + 1, 20))))
        real = draw(st.integers(1, gen))
        requests.append(
            (Request(f"r{key}", tuple(range(prompt)), gen, draw(st.integers(1, 2))), real)
        )
    return limits, requests


def token_of(sequence: int, position: int) -> int:
    return 1000 * (sequence + 1) + position


class Cache:
    """A KV cache that checks who wrote what where."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cells: dict[tuple[int, int], tuple[int, int, int]] = {}

    def write(self, batch: Batch) -> None:
        held: dict[int, int] = {}
        for micro in batch.micro_batches:
            for seg in micro.segments:
                assert seg.rows >= 1
                for b in seg.blocks:
                    assert held.setdefault(b, seg.sequence) == seg.sequence
                for i, token in enumerate(seg.tokens):
                    self.cells[self.at(seg, seg.start + i)] = (seg.sequence, seg.start + i, token)

    def check(self, seg, known: list[int]) -> None:
        got = [self.cells[self.at(seg, p)] for p in range(seg.kv_len)]
        assert got == [(seg.sequence, p, known[p]) for p in range(seg.kv_len)]

    def at(self, seg, position: int) -> tuple[int, int]:
        return seg.blocks[position // self.limits.kv_block], position % self.limits.kv_block


@settings(max_examples=150, deadline=None)
@given(jobs())
def test_every_token_is_computed_in_order_once_held_and_every_sequence_ends(job):
    limits, requests = job
    batcher, cache = Batcher(limits), Cache(limits)
    ends = {}
    for request, real in requests:
        for sequence in batcher.add(request):
            ends[sequence.id] = (sequence, real)
    done, sweeps = {}, 0
    while batcher.has_work:
        batch = batcher.next_batch()
        sweeps += 1
        assert 1 <= batch.rows <= limits.max_rows, "a sweep without progress, or too large"
        assert len(batch.micro_batches) == limits.micro_batches
        assert all(m.rows <= limits.mu for m in batch.micro_batches)
        assert batcher.active <= limits.max_seqs
        if batch.decode_rows < batch.rows:
            assert batch.rows <= max(limits.compute_rows, batch.decode_rows + limits.chunk)
        cache.write(batch)
        tokens, finished = {}, set()
        for micro in batch.micro_batches:
            for seg in micro.segments:
                sequence, real = ends[seg.sequence]
                known = [*sequence.request.tokens, *sequence.generated]
                cache.check(seg, known)
                if seg.sample:
                    assert seg.kv_len == len(known)
                    tokens[seg.sequence] = token_of(seg.sequence, len(known))
                    if len(sequence.generated) + 1 == real:
                        finished.add(seg.sequence)
        assert tuple(tokens) == batch.sampled
        for sequence in batcher.commit(batch, tokens, finished):
            assert sequence.id not in done
            done[sequence.id] = sequence
        assert sweeps < 5000, "no end"
    assert done.keys() == ends.keys()
    for key, (sequence, real) in ends.items():
        prompt = len(sequence.request.tokens)
        assert sequence.generated == [token_of(key, prompt + i) for i in range(real)]
    assert batcher.free_blocks == limits.kv_blocks
    counters = batcher.counters
    prompts = sum(len(s.request.tokens) for s, _ in ends.values())
    assert counters.prompt_tokens == prompts
    assert counters.prefill_tokens - counters.recomputed_tokens >= prompts
    if not counters.preemptions:
        assert counters.prefill_tokens == prompts
    assert counters.finished == len(ends)


@settings(max_examples=60, deadline=None)
@given(jobs(), st.randoms(use_true_random=False))
def test_blocks_are_conserved_under_aborts_and_uncommitted_batches(job, random):
    limits, requests = job
    batcher = Batcher(limits)
    ids = [s.id for request, _ in requests for s in batcher.add(request)]
    for _ in range(2000):
        if not batcher.has_work:
            break
        first = batcher.next_batch()
        batch = batcher.next_batch() if random.random() < 0.3 else first
        assert batch.rows >= 1
        if random.random() < 0.2:
            batcher.abort(random.choice(ids))
        batcher.commit(batch, dict.fromkeys(batch.sampled, 7))
    assert not batcher.has_work
    assert batcher.free_blocks == limits.kv_blocks
    assert batcher.counters.finished + batcher.counters.aborted == len(ids)


def run(batcher: Batcher, finished=()) -> Batch:
    batch = batcher.next_batch()
    batcher.commit(batch, dict.fromkeys(batch.sampled, 1), finished)
    return batch


def test_prefill_rides_along_up_to_the_compute_bound():
    batcher = Batcher(Limits(100, 8, kv_blocks=64, compute_rows=20, chunk=8))
    batcher.add(Request("a", range(10), 50))
    batcher.add(Request("b", range(40), 50))
    assert [s.rows for s in run(batcher).micro_batches[0].segments] == [10, 10]
    assert [s.rows for s in run(batcher).micro_batches[0].segments] == [1, 19]
    last = run(batcher)
    assert [s.rows for s in last.micro_batches[0].segments] == [1, 11]
    assert len(last.sampled) == 2


def test_at_least_one_chunk_is_admitted_beside_many_decodes():
    batcher = Batcher(Limits(100, 8, kv_blocks=64, compute_rows=1, chunk=8))
    batcher.add(Request("a", range(30), 50))
    assert [run(batcher).rows for _ in range(4)] == [8, 8, 8, 6]


def test_admission_starts_from_the_maximum_and_learns_from_finished_lengths():
    batcher = Batcher(Limits(64, 8, kv_blocks=4, kv_block=16))
    for key in "abcd":
        batcher.add(Request(key, range(8), 50))  # 57 tokens at most: all four blocks
    run(batcher)
    assert batcher.active == 1
    run(batcher, finished={0})
    run(batcher)
    assert batcher.active == 3  # 2 tokens on average: every request now counts as one block


def test_the_newest_is_preempted_and_resumes_with_its_tokens():
    batcher = Batcher(Limits(64, 8, kv_blocks=2, kv_block=4))
    batcher._footprint.finished, batcher._footprint.finished_tokens = 1, 1
    first, second = (batcher.add(Request(k, range(3), 6))[0] for k in "ab")
    for _ in range(2):
        run(batcher)
    assert batcher.active == 2
    batch = run(batcher)
    assert [s.sequence for s in batch.micro_batches[0].segments] == [first.id]
    assert batcher.counters.preemptions == 1
    assert len(second.generated) == 2
    while batcher.has_work:
        run(batcher)
    assert len(first.generated) == len(second.generated) == 6
    assert batcher.counters.recomputed_tokens == 4  # three of the prompt, one generated
    assert batcher.counters.prompt_tokens == first.prompt + second.prompt


def test_half_read_prompts_that_hold_all_blocks_do_not_deadlock():
    batcher = Batcher(Limits(64, 8, kv_blocks=2, kv_block=4, compute_rows=4, chunk=4))
    batcher._footprint.finished, batcher._footprint.finished_tokens = 1, 1
    for key in "ab":
        batcher.add(Request(key, range(8), 1))
    batcher._active.update({s.id: s for s in batcher._waiting})
    batcher._waiting.clear()
    for sequence in batcher._active.values():
        sequence.blocks, sequence.computed = batcher._pool.take(1), 4
    batch = run(batcher)
    assert [s.sequence for s in batch.micro_batches[0].segments] == [0]
    assert batcher.counters.preemptions == 1


def test_choices_are_sequences_of_their_own():
    batcher = Batcher(Limits(64, 8, kv_blocks=8))
    sequences = batcher.add(Request("a", (5, 6), 2, choices=3))
    assert [(s.id, s.choice) for s in sequences] == [(0, 0), (1, 1), (2, 2)]
    assert run(batcher).rows == 6


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("a", (), 4), "no tokens"),
        (Request("a", (1,), 0), "at least 1"),
        (Request("a", range(30), 4), "at most 33 tokens; got: 30 [+] 4"),
    ],
)
def test_requests_that_can_never_run_are_refused(request_, words):
    with pytest.raises(LineError, match=words):
        Batcher(Limits(64, 8, kv_blocks=2)).add(request_)


def test_a_request_that_just_fits_is_taken_and_runs_to_its_end():
    batcher = Batcher(Limits(64, 8, kv_blocks=2))
    (sequence,) = batcher.add(Request("a", range(30), 3))
    while batcher.has_work:
        run(batcher)
    assert len(sequence.generated) == 3


def test_more_input_is_wanted_until_a_sweep_of_sequences_waits():
    batcher = Batcher(Limits(8, 2, kv_blocks=8))
    assert batcher.needs_requests
    for key in "ab":
        batcher.add(Request(key, (1,), 1))
    assert not batcher.needs_requests
    assert batcher.waiting == 2
    assert not batcher.abort(99)


def test_limits_come_from_the_policy_and_are_checked():
    policy = Policy("stream", 32, 8, micro_batches=3, kv_blocks=9, compute_rows=20)
    assert Limits.of(policy) == Limits(32, 8, 9, 16, 3, 64, 20)
    with pytest.raises(UsageError):
        Limits(8, 9, 4)
    with pytest.raises(UsageError):
        Limits(8, 8, 0)
