"""Continuous batching for a machine on which every sweep reads all weights.

A sweep takes every active decode, and prefill rows beside them up to the number at which
compute becomes the bound. Order is first come, first served; when KV blocks run out the
newest sequence gives its blocks back and is recomputed later. No clock, no arrays: the engine
and the simulator run this same code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping

from headrace.batching.admission import Footprint
from headrace.batching.batch import Batch, Segment
from headrace.batching.blocks import BlockPool, blocks_for
from headrace.batching.choice import Choice
from headrace.batching.counters import Counters
from headrace.batching.limits import Limits
from headrace.batching.microbatch import arrange
from headrace.batching.outlook import Outlook
from headrace.batching.request import Request, Sequence
from headrace.errors import LineError


class Batcher:
    """Requests in, batches out. ``next_batch`` decides, ``commit`` advances.

    A batch that is never committed leaves no trace but blocks already held: calling
    ``next_batch`` again offers the same rows again. Costs O(active sequences) per sweep.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self._pool = BlockPool(limits.kv_blocks)
        self._footprint = Footprint(limits.kv_block)
        self._active: dict[int, Sequence] = {}  # ascending ids: first come, first served
        self._waiting: deque[Sequence] = deque()  # ascending ids, all above the active ones
        self._next_id = 0

    def add(self, request: Request) -> tuple[Sequence, ...]:
        """Queue ``request``; its sequences, one per choice.

        Raises LineError for a request that could never run: no prompt, or more KV at its
        longest than all blocks hold.
        """
        self._check(request)
        first = self._next_id
        self._next_id += request.choices
        sequences = tuple(Sequence(first + c, request, c) for c in range(request.choices))
        self._waiting.extend(sequences)
        return sequences

    def next_batch(self) -> Batch:
        """The next sweep's segments in micro-batches; no rows when there is no work."""
        segments = [_segment(s, rows) for s, rows in self.next_choice().shares()]
        limits = self.limits
        return arrange(segments, limits.micro_batches, limits.mu, spread=limits.spread)

    def commit(
        self, batch: Batch, tokens: Mapping[int, int], finished: Container[int] = ()
    ) -> tuple[Sequence, ...]:
        """The sweep has run: its rows are in the cache, ``tokens`` (sequence -> token) drawn.

        ``tokens`` holds every sequence of ``batch.sampled`` that was not aborted meanwhile.
        Sequences in ``finished``, and those at their ``max_tokens``, end and are returned.
        """
        shares = (
            (self._active[s.sequence], s.rows)
            for m in batch.micro_batches
            for s in m.segments
            if s.sequence in self._active
        )
        return self._advance(shares, tokens, finished)

    def abort(self, sequence: int) -> bool:
        """Forget a sequence, running or waiting; False if it is unknown (or has ended)."""
        found = self._active.get(sequence)
        if found is not None:
            self._release(found)
        else:
            found = next((s for s in self._waiting if s.id == sequence), None)
            if found is None:
                return False
            self._waiting.remove(found)
        self.counters.aborted += 1
        return True

    def clear(self) -> None:
        """Forget every sequence and give all blocks back; counters stay."""
        for sequence in list(self._active.values()):
            self._release(sequence)
        self._waiting.clear()

    def outlook(self) -> Outlook:
        """What the next sweeps will be like, from what is known now."""
        return Outlook(
            tuple(self._active.values()),
            tuple(self._waiting),
            self._footprint.expected_blocks,
            self.limits,
        )

    @property
    def has_work(self) -> bool:
        """Whether any sequence is active or waiting."""
        return bool(self._active or self._waiting)

    @property
    def active(self) -> int:
        """Sequences that hold a place in the sweep."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Sequences that hold none yet, or lost it."""
        return len(self._waiting)

    @property
    def needs_requests(self) -> bool:
        """Whether fewer sequences wait than one sweep could admit: time to read more input."""
        return len(self._waiting) < self.limits.max_seqs

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""
        return self._pool.free

    # -- the decision ---------------------------------------------------------------

    def next_choice(self) -> Choice:
        """Who takes part in the next sweep, and with how many rows; blocks are held for them."""
        preempted = self.counters.preemptions
        choice = self._choose()
        while not choice.chunks and not choice.decodes and len(self._active) > 1:
            self._preempt_newest()  # several half-read prompts hold all blocks
            choice = self._choose()
        if self.counters.preemptions == preempted:
            self._admit(choice)
        return choice

    def commit_choice(
        self, choice: Choice, tokens: Mapping[int, int], finished: Container[int] = ()
    ) -> tuple[Sequence, ...]:
        """``commit`` for a sweep that was never written out as a batch (the simulator's)."""
        return self._advance(choice.shares(), tokens, finished)

    def _choose(self) -> Choice:
        """Rows for active sequences: decodes first, preempting the newest when blocks run out."""
        choice = Choice()
        partial = []
        block = self.limits.kv_block
        for sequence in list(self._active.values()):
            if sequence.partial:
                partial.append(sequence)
            elif sequence.computed < len(sequence.blocks) * block or self._grow(sequence):
                choice.decodes.append(sequence)
        for sequence in partial:
            if sequence.id in self._active:  # else preempted by a decode
                self._give_chunk(choice, sequence)
        return choice

    def _grow(self, sequence: Sequence) -> bool:
        """One more block for a decode, if need be from the newest; False if it was the newest."""
        while not self._pool.free and sequence.id in self._active:
            self._preempt_newest()
        if sequence.id not in self._active:
            return False
        sequence.blocks += self._pool.take(1)
        return True

    def _give_chunk(self, choice: Choice, sequence: Sequence) -> int:
        """As many of the sequence's missing rows as rows and blocks allow, perhaps none."""
        block = self.limits.kv_block
        held = len(sequence.blocks)
        rows = min(
            sequence.length - sequence.computed,
            self._prefill_room(choice),
            (held + self._pool.free) * block - sequence.computed,
        )
        if rows > 0:
            need = blocks_for(sequence.computed + rows, block) - held
            sequence.blocks += self._pool.take(max(need, 0))
            choice.chunks.append((sequence, rows))
        return rows

    def _prefill_room(self, choice: Choice) -> int:
        decodes = len(choice.decodes)
        return self.limits.prefill_rows(decodes) - (choice.rows - decodes)

    def _admit(self, choice: Choice) -> None:
        """Let waiting sequences in while rows, places and expected KV blocks last."""
        if not self._waiting or len(self._active) > len(choice.decodes) + len(choice.chunks):
            return  # nobody waits, or somebody already inside got no row
        room = self._prefill_room(choice)
        if len(self._active) >= self.limits.max_seqs or room < 1:
            return
        expected = self._footprint.expected_blocks
        reserved = sum(expected(s) for s in self._active.values())
        while self._waiting and len(self._active) < self.limits.max_seqs and room > 0:
            sequence = self._waiting[0]
            reserved += expected(sequence)
            if self._active and reserved > self.limits.kv_blocks:
                return
            rows = self._give_chunk(choice, sequence)
            if rows < 1:  # no block is free
                return
            room -= rows
            self._active[self._waiting.popleft().id] = sequence

    def _preempt_newest(self) -> None:
        newest = self._active[next(reversed(self._active))]
        self._release(newest)
        newest.computed = 0
        self._waiting.appendleft(newest)
        self.counters.preemptions += 1

    # -- state ----------------------------------------------------------------------

    def _advance(
        self,
        shares: Iterable[tuple[Sequence, int]],
        tokens: Mapping[int, int],
        finished: Container[int],
    ) -> tuple[Sequence, ...]:
        counters, ended = self.counters, []
        for sequence, rows in list(shares):
            length = sequence.length
            if rows == 1 and sequence.generated and sequence.computed + 1 == length:
                counters.decode_tokens += 1
            else:
                end, seen = sequence.computed + rows, sequence.seen
                counters.prefill_tokens += rows
                counters.recomputed_tokens += max(0, min(end, seen) - sequence.computed)
                counters.prompt_tokens += max(0, min(end, sequence.prompt) - seen)
            sequence.computed += rows
            sequence.seen = max(sequence.seen, sequence.computed)
            if sequence.computed < length:
                continue
            sequence.generated.append(tokens[sequence.id])
            counters.sampled_tokens += 1
            full = len(sequence.generated) >= sequence.request.max_tokens
            if full or sequence.id in finished:
                self._release(sequence)
                self._footprint.record(sequence)
                ended.append(sequence)
        counters.sweeps += 1
        counters.finished += len(ended)
        return tuple(ended)

    def _release(self, sequence: Sequence) -> None:
        del self._active[sequence.id]
        self._pool.give(sequence.blocks)
        sequence.blocks = ()

    def _check(self, request: Request) -> None:
        if not len(request.tokens):
            raise LineError("the prompt has no tokens", expected="at least one token", got=0)
        if request.max_tokens < 1 or request.choices < 1:
            raise LineError(
                "max_tokens and the number of choices",
                expected="at least 1",
                got=f"{request.max_tokens} and {request.choices}",
            )
        longest = len(request.tokens) + request.max_tokens - 1
        capacity = self.limits.kv_blocks * self.limits.kv_block
        if blocks_for(longest, self.limits.kv_block) > self.limits.kv_blocks:
            raise LineError(
                "the request can grow longer than the KV cache",
                code="context_length_exceeded",
                expected=f"prompt and max_tokens of at most {capacity + 1} tokens",
                got=f"{len(request.tokens)} + {request.max_tokens}",
                hint="a smaller max_tokens, a larger memory budget, or a run of its own",
            )


def _segment(sequence: Sequence, rows: int) -> Segment:
    start, stop = sequence.computed, sequence.computed + rows
    return Segment(
        sequence.id,
        sequence.tokens_between(start, stop),
        start,
        sequence.blocks,
        sample=stop == sequence.length,
    )
