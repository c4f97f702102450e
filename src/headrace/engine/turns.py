"""The loads of a rehearsal, and what was timed of each, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.machines.hand_overs import hand_over_seconds
from headrace.machines.trace import SweepTrace
from headrace.planner.calibrate import OTHERS, Timed
from headrace.schedule.task import Op
from headrace.specs.hardware import DISK

CONTEXT = 192
"""Tokens that each decode attends to."""

VARIANTS = 8
"""Batches of different tokens of one load: rows of the embedding table are cold in a run, too."""

PROMPTS: dict[str, list[tuple[int, int]]] = {
    "4 prompts of 16": [(16, 16)] * 4,
    "1 chunk of 64": [(64, 64)],
    "16 prompts of 16": [(16, 16)] * 16,
    "4 chunks of 64": [(64, 64), (64, 128), (64, 192), (64, 64)],
    "8 chunks of 64": [(64, 64), (64, 128), (64, 192), (64, 64)] * 2,
    "2 prompts of 256": [(256, 256)] * 2,
}
"""Name -> (rows, tokens after them) of each sequence."""


def loads_of(max_seqs: int) -> dict[str, list[tuple[int, int]]]:
    """All loads, as far as ``max_seqs`` allows: decodes, then prompt chunks."""
    decodes = (n for n in (1, 4, 16, 64, 256) if n <= max_seqs)
    return {**{f"{n} decodes": [(1, CONTEXT)] * n for n in decodes}, **PROMPTS}


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
    handing_over: float = 0.0

    def add_reads(self, traces: Sequence[SweepTrace], moved: int) -> None:
        """``moved`` bytes were read in ``traces``."""
        self.read_bytes += moved
        self.read_seconds += seconds_in(Op.READ_PAGE, traces)
        if self.schedule in OTHERS:
            self.handing_over += hand_over_seconds(traces)

    def reads(self) -> Iterator[Timed]:
        """All reads as one, none if there are none: lanes of a disk are busy together, and a
        sweep's first reads beside the last ones of the sweep before. Where reads are waited for,
        nothing goes on while a lane wakes the next one: this time is theirs as well."""
        if self.read_bytes:
            seconds = self.read_seconds + self.handing_over
            rows = sum(rows for rows, _ in self.extents)
            yield Timed(Op.READ_PAGE.value, rows, {DISK: self.read_bytes}, seconds)


def seconds_in(op: Op, traces: Sequence[SweepTrace]) -> float:
    """Seconds in which a task of ``op`` was going on."""
    spans = sorted(
        (span.start, span.end)
        for trace in traces
        for span in trace.spans
        if trace.schedule.tasks[span.task].op is op
    )
    until = seconds = 0.0
    for start, end in spans:
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


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
