"""The loads of a rehearsal, and what was timed of each, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.engine.sweep import Sweep
from headrace.machines.hand_overs import hand_over_seconds
from headrace.machines.trace import SweepTrace
from headrace.planner.timed import OTHERS, Timed
from headrace.schedule.task import Op, Task
from headrace.schedule.work_vector import LANE
from headrace.specs.hardware import DISK

CONTEXT, SHORT = 192, 32
"""Tokens that each decode attends to; in every other load but the two smallest: what a sequence
takes whatever it attends to shows where it attends to little."""

VARIANTS = 8
"""Batches of different tokens of one load: rows of the embedding table are cold in a run, too."""

PROMPTS: dict[str, list[tuple[int, int]]] = {
    "4 prompts of 16": [(16, 16)] * 4,
    "1 chunk of 64": [(64, 64)],
    "4 chunks of 64": [(64, 64), (64, 128), (64, 192), (64, 64)],
    "2 prompts of 256": [(256, 256)] * 2,
}
"""Name -> (rows, tokens after them) of each sequence."""


def loads_of(max_seqs: int) -> dict[str, list[tuple[int, int]]]:
    """All loads, as far as ``max_seqs`` allows: decodes, then prompt chunks."""
    contexts = {1: CONTEXT, 4: CONTEXT, 16: SHORT, 64: CONTEXT, 256: SHORT}
    decodes = {n: [(1, kv)] * n for n, kv in contexts.items() if n <= max_seqs}
    return {**{f"{n} decodes": extents for n, extents in decodes.items()}, **PROMPTS}


class Rehearsed(NamedTuple):
    """Several sweeps of one load. ``tasks`` holds what was timed, sweep by sweep; ``read_bytes``
    came from disk in ``read_seconds``, in which something was being read."""

    load: str
    tasks: tuple[tuple[Timed, ...], ...]
    read_bytes: int
    read_seconds: float


@dataclass
class Turn:
    """A load under a schedule, with all that its turns have brought so far."""

    schedule: str
    load: str
    extents: Sequence[tuple[int, int]]
    batches: Sequence[Batch]
    tasks: list[tuple[Timed, ...]] = field(default_factory=list)
    read_bytes: int = 0
    read_seconds: float = 0.0
    request_seconds: float = 0.0
    handing_over: float = 0.0

    def counts(self, task: Task) -> bool:
        """Whether ``task`` is a read that says how fast pages come: where reads wait for the
        router, or for their turn, only those that do. (Pages of the head are larger, and come in
        one go: beside them it would not be seen what an expert takes that is waited for.)"""
        return task.op is Op.READ_PAGE and (self.schedule not in OTHERS or bool(task.reads))

    def add_reads(self, traces: Sequence[SweepTrace]) -> None:
        """The reads of ``traces`` that count."""
        for trace in traces:
            assert isinstance(trace.sweep, Sweep)
            moved = trace.sweep.binding.page_bytes
            pages = (task.page for task in trace.schedule.tasks if self.counts(task))
            self.read_bytes += sum(moved.get(page, 0) for page in pages if page is not None)
        seconds, requests = seconds_of(self.counts, traces)
        self.read_seconds += seconds
        self.request_seconds += requests
        if self.schedule in OTHERS:
            self.handing_over += hand_over_seconds(traces, self.counts)

    def reads(self) -> Iterator[Timed]:
        """All reads as one, none if there are none: lanes of a disk are busy together, and a
        sweep's first reads beside the last ones of the sweep before. Where reads are waited for,
        nothing goes on while a lane wakes the next one: this time is theirs as well. How many
        requests were in flight says what the lanes allowed."""
        if self.read_bytes:
            seconds = self.read_seconds + self.handing_over
            rows = sum(rows for rows, _ in self.extents)
            each = self.read_bytes * self.read_seconds / self.request_seconds
            amounts = {DISK: float(self.read_bytes), LANE: each}
            yield Timed(Op.READ_PAGE.value, rows, amounts, seconds)


class Seconds(NamedTuple):
    """Seconds in which some task of a kind went on, and of all of them together."""

    busy: float
    total: float


def seconds_of(counts: Callable[[Task], bool], traces: Sequence[SweepTrace]) -> Seconds:
    """Of the tasks that ``counts`` names."""
    spans = sorted(
        (span.start, span.end)
        for trace in traces
        for span in trace.spans
        if counts(trace.schedule.tasks[span.task])
    )
    until = busy = 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return Seconds(busy, sum(end - start for start, end in spans))


def batches_of(
    extents: Sequence[tuple[int, int]], vocab: int, places: int, blocks_each: int
) -> list[Batch]:
    """VARIANTS batches of these sequences, each with tokens of its own. There is room for the keys
    and values of ``places`` sequences, ``blocks_each`` blocks for each: those beyond share them."""
    return [_batch(extents, Random(v), vocab, places, blocks_each) for v in range(VARIANTS)]


def _batch(
    extents: Sequence[tuple[int, int]], draw: Random, vocab: int, places: int, blocks_each: int
) -> Batch:
    segments = tuple(
        Segment(
            sequence=i,
            tokens=tuple(draw.randrange(vocab) for _ in range(rows)),
            start=kv_len - rows,
            blocks=tuple(range(i % places * blocks_each, (i % places + 1) * blocks_each)),
            sample=rows == 1,
        )
        for i, (rows, kv_len) in enumerate(extents)
    )
    return Batch((MicroBatch(segments),))
