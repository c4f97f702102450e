"""A few layers of the model at hand on the machine that runs will use: what ``calibrate`` times.

An operation alone in a loop finds its weights in the cache and the memory to itself; a run does
neither. So nothing is timed alone here: whole sweeps of the first layers are played, of the same
bodies, lanes, ring and reads, long enough that each layer's weights have left the cache before
they are used again. Decodes and prompt chunks are played apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.engine.endless import EndlessAnswers
from headrace.engine.loaded import Loaded
from headrace.engine.record import Record
from headrace.engine.sampler import SampledToken, Sampler
from headrace.engine.session import lanes_as_threads
from headrace.engine.sweep import Sweep
from headrace.kernels.select import select
from headrace.machines.hand_overs import hand_over_seconds
from headrace.machines.machine import Body, Machine, Views
from headrace.machines.trace import SweepTrace
from headrace.memory.arena import Arena
from headrace.models.bodies import make_bodies
from headrace.models.workspace import Workspace
from headrace.planner.calibrate import OTHERS, SPARED, Timed, name_of
from headrace.planner.memory_map import arena_bytes
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Schedule, Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.pages import Role
from headrace.specs.policy import Policy

Clock = Callable[[], float]

MAX_ROWS = 512
CONTEXT = 192
"""Rows of a sweep at most, and tokens that each decode attends to."""

PLACE = 256
"""Tokens that a sequence has room for: the longest prompt played."""

COLD_BYTES = 256 << 20
"""Weights of the layers played, where the model has as many: caches are smaller."""

RING_SLOTS, RING_BYTES, LANES = 6, 96 << 20, 2
"""Slots of the ring at least, and its bytes where the model streams as many: into a ring that the
cache holds a disk reads faster than into a run's."""

LOGIT_BYTES = 64 << 20
"""Of the logits at most."""

MOST_HELD, LEAST_SLOTS, MOST_SPARED = 64, 3, 4
"""Sequences with keys and values of their own; slots of the ring where there is little room; and
experts that stay at most, so that the ring goes round evenly."""

VARIANTS = 8
"""Batches of different tokens of one load: rows of the embedding table are cold in a run, too."""

FEWER = (
    *(f"{n} decodes" for n in (1, 4, 16, 64)),
    *("1 chunk of 64", "4 chunks of 64", "2 prompts of 256"),
)
"""Loads that are played under other schedules, too."""

LEAST_REPEATS, MOST_REPEATS = 3, 24
"""Sweeps of one load that count; one before them does not."""


class Rehearsed(NamedTuple):
    """Several sweeps of one load. ``tasks`` holds what was timed, sweep by sweep; ``read_bytes``
    came from disk in ``read_seconds``, in which something was being read."""

    load: str
    tasks: tuple[tuple[Timed, ...], ...]
    read_bytes: int
    read_seconds: float


class Rehearsal:
    """The first layers of a model, in memory of their own: close it before a run begins.

    ``streams``: every other expert passes through a ring from disk, as where the model does not
    fit (fresh from disk a page may still be in the cache, a resident one is not); else all are
    resident. ``room_bytes`` bounds what is taken, as far as two layers allow.
    """

    def __init__(
        self,
        loaded: Loaded,
        clock: Clock,
        *,
        streams: bool,
        room_bytes: int,
        threads: int,
        kv_dtype: str,
        kernels: str,
        activations: str,
    ) -> None:
        self._tokenizer = loaded.tokenizer  # first: nothing was taken yet if there is none
        self.model, self.table = loaded.first_layers(_layers(loaded, room_bytes))
        pages = self.table.pages
        through = self._streamed(room_bytes)
        slot = self.table.max_slot_bytes(through)
        wanted = min(-(-RING_BYTES // slot), room_bytes // (4 * slot), len(through))
        most = max(RING_SLOTS if RING_SLOTS * slot <= room_bytes // 3 else LEAST_SLOTS, wanted)
        through, slots = self._in_rounds(through, most)
        self.policy = Policy(
            schedule="stream" if streams else "resident",
            max_rows=MAX_ROWS,
            max_seqs=min(
                MAX_ROWS, max(16, min(LOGIT_BYTES, room_bytes // 8) // (self.model.vocab * 4))
            ),
            resident=frozenset(p.id for p in pages) - (through if streams else frozenset()),
            ring_slots=slots if streams else 0,
            slot_bytes=slot if streams else 0,
            disk_lanes=LANES,
            kv_blocks=self._held(room_bytes) * PLACE // 16,
            kv_dtype=kv_dtype,
            threads=threads,
            kernels=kernels,
            activations=activations,
        )
        sizes = buffer_sizes(
            self.model, pages, self.policy, {p.id: self.table.slot_bytes(p.id) for p in pages}
        )
        total = sum(arena_bytes(size.bytes) for size in sizes.values())
        self._arena = Arena("host", total + (1 << 20))
        chosen = select(kernels, threads, activations)
        self._workspace = Workspace(
            self.model, self.table, self.policy, sizes, self._arena, chosen.turn
        )
        self._workspace.load_resident()
        self._work = WorkModel(self.model, pages, self.policy)
        self._record = Record(self.table, self._work, hardware=_EVEN)
        self._sampler = Sampler(0, self.model.vocab, select(kernels, threads))
        self._answers: dict[int, EndlessAnswers] = {}
        self._batches: list[Batch] = [Batch()]
        self._clock = clock
        self._phase = self._sweeps = 0
        self._schedules: dict[tuple[str, int], Schedule] = {}
        bodies = {**make_bodies(self.model, self.table, self.policy, chosen), **self._own_bodies()}
        self._machine: Machine = lanes_as_threads(bodies, self._workspace, clock)
        idle = dict.fromkeys(bodies, _nothing)
        self._idle: Machine = lanes_as_threads(idle, self._workspace, clock)

    def close(self) -> None:
        """Stop the lanes and give the memory back."""
        self._machine.close()
        self._idle.close()
        del self._workspace
        self.table.close()
        self._arena.close()

    def play(self, seconds_each: float) -> Iterator[Rehearsed]:
        """Every load for about ``seconds_each``: decodes, then prompt chunks; where experts pass
        through a ring, some of them under the other schedules that do so."""
        loads, own = self._loads(), self.policy.schedule
        self._repeat("first touch of all memory", own, list(loads.values())[-1], seconds_each)
        for load, extents in loads.items():
            yield self._repeat(load, own, extents, seconds_each)
        for schedule in OTHERS if self.policy.ring_slots else ():
            for load in FEWER:
                if load in loads:
                    yield self._repeat(load, schedule, loads[load], seconds_each)

    def sample(self) -> float:
        """Draw greedily for as many rows as there are logits; returns their number."""
        logits = self._workspace.view(Buffer("logits"))
        logits.zero_()
        self._draw(logits)
        return float(len(logits))

    def idle_tasks(self) -> float:
        """Run a sweep of tasks that do nothing; returns their number."""
        schedule = self._schedule(self.policy.schedule, 0)
        self._idle.append(schedule, Sweep(0)).wait()
        return float(len(schedule.tasks))

    def _streamed(self, room_bytes: int) -> set[int]:
        """Pages that pass through the ring: tables, and experts but every other one, of which as
        many stay as half the room holds."""
        room, through = room_bytes // 2, set[int]()
        for number, page in enumerate(p for p in self.table.pages if p.expert is not None):
            room -= self.table.slot_bytes(page.id) if number % 2 else 0
            if number % 2 == 0 or room < 0:
                through.add(page.id)
        return through | {p.id for p in self.table.pages if p.role in ("embed", "head")}

    def _in_rounds(self, through: set[int], most: int) -> tuple[set[int], int]:
        """``through`` less some experts, and slots of the ring, at least half of ``most``, of which
        each takes as many of a sweep's pages. Then every sweep has the same list: in a run lists
        have been made once after some sweeps, and to make one costs other threads the interpreter
        for longer than a sweep of few layers lasts."""
        read = [p for p in self.table.pages if p.id in through and p.role is not Role.EMBED]
        experts = [page.id for page in read if page.expert is not None]
        for spared in range(min(len(experts) // 4, MOST_SPARED) + 1):
            for slots in range(most, max(LEAST_SLOTS, (most + 1) // 2) - 1, -1):
                if (len(read) - spared) % slots == 0:
                    return through.difference(experts[len(experts) - spared :]), slots
        return through, most

    def _held(self, room_bytes: int) -> int:
        """Sequences that have tokens of their own: MOST_HELD, less where an eighth of the room does
        not hold as many."""
        each = 2 * PLACE * self.model.kv_size * 4 * self.model.layers
        return max(4, min(MOST_HELD, room_bytes // 8 // each))

    def _loads(self) -> dict[str, list[tuple[int, int]]]:
        """Name -> (rows, tokens after them) of each sequence."""
        seqs = self.policy.max_seqs
        decodes = {f"{n} decodes": [(1, CONTEXT)] * n for n in (1, 4, 16, 64, 256) if n <= seqs}
        chunks = [(64, 64), (64, 128), (64, 192), (64, 64)]
        return {
            **decodes,
            "4 prompts of 16": [(16, 16)] * 4,
            "1 chunk of 64": [(64, 64)],
            "16 prompts of 16": [(16, 16)] * 16,
            "4 chunks of 64": chunks,
            "8 chunks of 64": 2 * chunks,
            "2 prompts of 256": [(256, 256)] * 2,
        }

    def _batch_of(self, extents: Sequence[tuple[int, int]], variant: int) -> Batch:
        """Sequences beyond the cache share blocks; every ``variant`` has its own tokens."""
        each = PLACE // self.policy.kv_block
        places = self.policy.kv_blocks // each
        draw = Random(variant)
        segments = tuple(
            Segment(
                sequence=i,
                tokens=tuple(draw.randrange(self.model.vocab) for _ in range(rows)),
                start=kv_len - rows,
                blocks=tuple(range(i % places * each, (i % places + 1) * each)),
                sample=rows == 1,
            )
            for i, (rows, kv_len) in enumerate(extents)
        )
        return Batch((MicroBatch(segments),))

    def _repeat(
        self, load: str, schedule: str, extents: Sequence[tuple[int, int]], seconds: float
    ) -> Rehearsed:
        self._batches = [self._batch_of(extents, variant) for variant in range(VARIANTS)]
        began = self._clock()
        self._sweep_traces(schedule, 1)
        once = max(self._clock() - began, 1e-6)
        count = max(LEAST_REPEATS, min(MOST_REPEATS, int(seconds / once)))
        traces = self._sweep_traces(schedule, count)
        reads = self._reads_of(traces, alone=schedule == "one_by_one")
        timed = tuple(self._named(schedule, (*self._timed(trace), *reads)) for trace in traces)
        own = schedule == self.policy.schedule
        return Rehearsed(load if own else f"{load}, {schedule}", timed, *_reads(traces))

    def _named(self, schedule: str, found: Sequence[Timed]) -> tuple[Timed, ...]:
        """Under the names of ``schedule``; where it is not our own only what is named for it."""
        named = (each._replace(op=name_of(each.op, schedule)) for each in found)
        own = schedule == self.policy.schedule
        return tuple(new for old, new in zip(found, named, strict=True) if own or new.op != old.op)

    def _sweep_traces(self, schedule: str, count: int) -> list[SweepTrace]:
        """``count`` sweeps, two in flight. What a run records of each is recorded here, too: it
        keeps the interpreter, and a core, from the sweep that has begun."""
        tickets, traces = [], []
        for index in range(count):
            tickets.append(self._machine.append(self._next_schedule(schedule), Sweep(self._sweeps)))
            self._sweeps += 1
            if index:
                traces.append(tickets[index - 1].wait())
                self._record.add(traces[-1])
        return [*traces, tickets[-1].wait()]

    def _next_schedule(self, name: str) -> Schedule:
        schedule = self._schedule(name, self._phase)
        self._phase = next_phase(self.table.pages, self.policy, self._phase)
        return schedule

    def _schedule(self, name: str, phase: int) -> Schedule:
        if (name, phase) not in self._schedules:
            policy = replace(self.policy, schedule=name)
            made = generate(self.model, self.table.pages, policy, phase)
            self._schedules[name, phase] = made
        return self._schedules[name, phase]

    def _timed(self, trace: SweepTrace) -> Iterator[Timed]:
        sweep = trace.sweep
        assert isinstance(sweep, Sweep)
        for span in trace.spans:
            task = trace.schedule.tasks[span.task]
            amounts, rows = self._work.work(task, sweep.binding)[:2]
            if any(amounts.values()) and task.op is not Op.READ_PAGE:
                yield Timed(task.op.value, rows, amounts, span.end - span.start)
            elif task.expert is not None and task.op is not Op.READ_PAGE:
                yield Timed(SPARED, 1.0, {}, span.end - span.start)

    def _reads_of(self, traces: Sequence[SweepTrace], alone: bool) -> tuple[Timed, ...]:
        """All reads of some sweeps as one: lanes of a disk are busy together, and a sweep's first
        reads beside the last ones of the sweep before. ``alone``: nothing else goes on meanwhile,
        nor while a lane wakes the next one, and this time is theirs as well."""
        moved, seconds = _reads(traces)
        if alone:
            seconds += hand_over_seconds(traces)
        rows = sum(m.rows for m in self._batches[0].micro_batches)
        return (Timed(Op.READ_PAGE.value, rows, {DISK: moved}, seconds),) if moved else ()

    def _own_bodies(self) -> dict[Op, Body]:
        """What the engine does around the arithmetic, for a batch that never ends."""

        def bind(task: Task, views: Views, sweep: Sweep) -> None:
            sweep.bind(self._batches[sweep.index % len(self._batches)])

        def sample(task: Task, views: Views, sweep: Sweep) -> None:
            count = len(sweep.batch.sampled)
            if count:
                sweep.sampled = self._draw(views[Buffer("logits")][:count])

        def commit(task: Task, views: Views, sweep: Sweep) -> None:
            if sweep.batch.sampled:
                self._answers_of(len(sweep.batch.sampled)).accept(sweep.sampled)

        return {Op.BIND: bind, Op.SAMPLE: sample, Op.COMMIT: commit}

    def _draw(self, logits: Any) -> list[SampledToken]:
        return self._sampler.sample(logits, self._answers_of(len(logits)).rows())

    def _answers_of(self, count: int) -> EndlessAnswers:
        if count not in self._answers:
            self._answers[count] = EndlessAnswers(count, self._tokenizer)
        return self._answers[count]


_EVEN = Hardware("any", dict.fromkeys((CPU_FLOPS, DRAM, DISK, HOST), 1.0))
"""What times are recorded for is of no interest here."""


def _nothing(task: Task, views: Views, sweep: Sweep) -> None:
    pass


def _layers(loaded: Loaded, room_bytes: int) -> int:
    """Layers until their weights exceed every cache, two at least, within ``room_bytes``."""
    sizes: dict[int, int] = {}
    for page in loaded.pages:
        if page.layer is not None:
            sizes[page.layer] = sizes.get(page.layer, 0) + loaded.page_bytes[page.id]
    total = 0
    for count, layer in enumerate(sorted(sizes), 1):
        total += sizes[layer]
        if count >= 2 and (total >= COLD_BYTES or total + sizes[layer] > room_bytes):
            return count
    return len(sizes)


def _reads(traces: Sequence[SweepTrace]) -> tuple[int, float]:
    """Bytes of pages read, and the seconds in which one was being read."""
    spans = sorted(
        (span.start, span.end)
        for trace in traces
        for span in trace.spans
        if trace.schedule.tasks[span.task].op is Op.READ_PAGE
    )
    moved = sum(_bytes_read(trace) for trace in traces)
    until = seconds = 0.0
    for start, end in spans:
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return moved, seconds


def _bytes_read(trace: SweepTrace) -> int:
    assert isinstance(trace.sweep, Sweep)
    return sum(trace.sweep.binding.page_bytes.values())
