"""A few layers of the model at hand on the machine that runs will use: what ``calibrate`` times.

An operation alone in a loop finds its weights in the cache and the memory to itself; a run does
neither. So nothing is timed alone here: whole sweeps of the first layers are played, of the same
bodies, lanes, ring and reads, long enough that each layer's weights have left the cache before
they are used again. Decodes and prompt chunks are played apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from headrace.batching.batch import Batch
from headrace.engine.endless import EndlessAnswers
from headrace.engine.loaded import Loaded
from headrace.engine.record import Record
from headrace.engine.sampler import SampledToken, Sampler
from headrace.engine.session import lanes_as_threads
from headrace.engine.sweep import Sweep
from headrace.engine.turns import Rehearsed, Turn, batches_of, loads_of
from headrace.kernels.select import select
from headrace.machines.machine import Body, Machine, Views
from headrace.machines.trace import SweepTrace
from headrace.memory.arena import Arena
from headrace.models.bodies import make_bodies
from headrace.models.workspace import Workspace
from headrace.planner.memory_map import arena_bytes
from headrace.planner.timed import BETWEEN, OTHERS, PASSED, Timed, name_of
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.lanes import CPU
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Schedule, Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy

Clock = Callable[[], float]

MAX_ROWS = 512
"""Rows of a sweep at most."""

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

FEWER = (*(f"{n} decodes" for n in (1, 4, 16, 64)), "1 chunk of 64")
"""Loads that are played under other schedules, too: of many rows all schedules read and multiply
alike."""

ROUNDS = 4
"""Times that every load gets its turn: a machine that others share is faster in one second than in
the next, and a load played in a single stretch would see one of them only."""

MEETING, STRETCH = ("16 decodes", "64 decodes", "4 prompts of 16", "1 chunk of 64"), 8
"""Loads in which reads and arithmetic take about as long, and sweeps of them in a row (in every
other round): what they lose to each other shows once all lanes have been busy for a while."""

LEAST_REPEATS, MOST_REPEATS = 2, 8
"""Sweeps of one load in a round; two at least, since the second one is beside what a run does about
the first."""

MOST_TIMES = 4
"""Times the seconds of a load that a sweep may take to be played twice."""


class Rehearsal:
    """The first layers of a model, in memory of their own: close it before a run begins.

    ``streams``: experts pass through a ring from disk, as where the model does not fit, but for a
    share ``held`` of them, as many as will stay in the run: a page that stays lies in another
    order, and one that is fresh from disk may still be in the cache. Else all are resident.
    ``room_bytes`` bounds what is taken, as far as two layers allow.
    """

    def __init__(
        self,
        loaded: Loaded,
        clock: Clock,
        *,
        streams: bool,
        room_bytes: int,
        held: float = 0.5,
        threads: int,
        kv_dtype: str,
        kernels: str,
        activations: str,
    ) -> None:
        self._tokenizer = loaded.tokenizer  # first: nothing was taken yet if there is none
        self.model, self.table = loaded.first_layers(_layers(loaded, room_bytes))
        pages = self.table.pages
        through = self._streamed(room_bytes, held)
        slot = self.table.max_slot_bytes([p.id for p in self._read(through)] or through)
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
        self._batches: Sequence[Batch] = [Batch()]
        self._clock = clock
        self._phase = self._sweeps = 0
        self._schedules: dict[tuple[str, int], Schedule] = {}
        bodies = {**make_bodies(self.model, self.table, self.policy, chosen), **self._own_bodies()}
        self._machine: Machine = lanes_as_threads(bodies, self._workspace, clock)

    def close(self) -> None:
        """Stop the lanes and give the memory back."""
        self._machine.close()
        del self._workspace
        self.table.close()
        self._arena.close()

    def play(self, seconds_each: float) -> Iterator[Rehearsed]:
        """Every load for about ``seconds_each``: decodes, then prompt chunks; where experts pass
        through a ring, some of them under the other schedules that do so. In ROUNDS, after one
        sweep of each that does not count. Of a load whose sweep takes longer than ``seconds_each``
        that one counts, and one more does (two of MEETING), unless it takes MOST_TIMES as long."""
        turns, own = self._turns(), self.policy.schedule
        self._play(turns[-1], 1)  # the first touch of most memory is in no sweep that is timed
        once = [self._once(turn, seconds_each) for turn in turns]
        for number in range(ROUNDS):
            for turn, seconds in zip(turns, once, strict=True):
                if seconds <= seconds_each:
                    count = self._repeats(turn, number, seconds_each / seconds)
                    if count:
                        self._count(turn, self._play(turn, count), _ALONE)
                elif number == ROUNDS // 2 and seconds <= MOST_TIMES * seconds_each:
                    self._count(turn, self._play(turn, 2 if self._meets(turn) else 1))
        for turn in turns:
            name = turn.load if turn.schedule == own else f"{turn.load}, {turn.schedule}"
            yield Rehearsed(name, self._tasks_of(turn), turn.read_bytes, turn.read_seconds)

    def sample(self) -> float:
        """Draw greedily for as many rows as there are logits; returns their number."""
        logits = self._workspace.view(Buffer("logits"))
        logits.zero_()
        self._draw(logits)
        return float(len(logits))

    def _streamed(self, room_bytes: int, held: float) -> set[int]:
        """Pages that pass through the ring: the table, and experts but a share of ``held``, evenly
        spread, as far as half the room holds them beside the head; where the head takes more than
        half of that, it passes, too. (In a run it stays before any expert does.)"""
        room, due = room_bytes // 2, 0.0
        through = {p.id for p in self.table.pages if p.role is Role.EMBED}
        head = [p.id for p in self.table.pages if p.role is Role.HEAD]
        taken = sum(self.table.slot_bytes(page) for page in head)
        if taken > room // 2:
            through.update(head)
        else:
            room -= taken
        for page in (p for p in self.table.pages if p.expert is not None):
            due = min(1.0, due + held)
            if due < 1.0 or room < self.table.slot_bytes(page.id):
                through.add(page.id)
            else:
                due -= 1.0
                room -= self.table.slot_bytes(page.id)
        return through

    def _read(self, through: set[int]) -> list[Page]:
        """Pages of ``through`` that lie in the ring: of the table only rows are read."""
        return [p for p in self.table.pages if p.id in through and p.role is not Role.EMBED]

    def _in_rounds(self, through: set[int], most: int) -> tuple[set[int], int]:
        """``through`` less some experts, and slots of the ring, at least half of ``most``, of which
        each takes as many of a sweep's pages. Then every sweep has the same list: in a run lists
        have been made once after some sweeps, and to make one costs other threads the interpreter
        for longer than a sweep of few layers lasts."""
        read = self._read(through)
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

    def _turns(self) -> list[Turn]:
        loads = loads_of(self.policy.max_seqs)
        each = PLACE // self.policy.kv_block
        places = self.policy.kv_blocks // each
        batches = {
            load: batches_of(extents, self.model.vocab, places, each)
            for load, extents in loads.items()
        }
        turns = [(self.policy.schedule, load) for load in loads]
        for schedule in OTHERS if self.policy.ring_slots else ():
            turns += [(schedule, load) for load in FEWER if load in loads]
        return [Turn(schedule, load, loads[load], batches[load]) for schedule, load in turns]

    def _meets(self, turn: Turn) -> bool:
        return turn.load in MEETING and turn.schedule == "stream"

    def _repeats(self, turn: Turn, number: int, fitting: float) -> int:
        """Sweeps in round ``number``, of ``fitting`` in all."""
        if self._meets(turn):
            return STRETCH if number % 2 else 0
        return max(LEAST_REPEATS, min(MOST_REPEATS, int(fitting / ROUNDS)))

    def _once(self, turn: Turn, most: float) -> float:
        """Seconds that a sweep of ``turn`` takes; one of more than ``most`` counts."""
        began = self._clock()
        traces = self._play(turn, 1)
        seconds = max(self._clock() - began, 1e-6)
        if seconds > most:
            self._count(turn, traces)
        return seconds

    def _count(
        self, turn: Turn, traces: Sequence[SweepTrace], alone: frozenset[Op] = frozenset()
    ) -> None:
        """Note what was timed; of the first of ``traces`` without the tasks of ``alone``."""
        for number, trace in enumerate(traces):
            apart = alone if number == 0 else frozenset[Op]()
            turn.tasks.append(tuple(self._timed(trace, apart)))
        turn.add_reads(traces)

    def _tasks_of(self, turn: Turn) -> tuple[tuple[Timed, ...], ...]:
        """What was timed, sweep by sweep, with all reads in each."""
        reads = tuple(turn.reads())
        return tuple(self._named(turn.schedule, (*tasks, *reads)) for tasks in turn.tasks)

    def _named(self, schedule: str, found: Sequence[Timed]) -> tuple[Timed, ...]:
        """Under the names of ``schedule``; where it is not our own only what is named for it."""
        named = (each._replace(op=name_of(each.op, schedule)) for each in found)
        own = schedule == self.policy.schedule
        return tuple(new for old, new in zip(found, named, strict=True) if own or new.op != old.op)

    def _play(self, turn: Turn, count: int) -> list[SweepTrace]:
        """``count`` sweeps, two in flight. What a run records of each is recorded here, too: it
        keeps the interpreter, and a core, from the sweep that has begun."""
        self._batches = turn.batches
        tickets, traces = [], []
        for index in range(count):
            schedule = self._next_schedule(turn.schedule)
            tickets.append(self._machine.append(schedule, Sweep(self._sweeps)))
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

    def _timed(self, trace: SweepTrace, apart: frozenset[Op]) -> Iterator[Timed]:
        """The tasks of a sweep, except those of ``apart``; and what lies before those of the
        arithmetic's lane that wait for no other, or were passed over."""
        sweep = trace.sweep
        assert isinstance(sweep, Sweep)
        until: float | None = None
        for span in trace.spans:
            task = trace.schedule.tasks[span.task]
            if task.lane == CPU:
                if until is not None and span.start == span.end:
                    yield Timed(PASSED, 1.0, {}, span.end - until)
                elif until is not None and task.op in _BEHIND_ANOTHER:
                    yield Timed(BETWEEN, 1.0, {}, span.start - until)
                until = span.end
            work, seconds = self._work.work(task, sweep.binding), span.end - span.start
            if any(work.amounts.values()) and task.op not in (*apart, Op.READ_PAGE):
                yield Timed(task.op.value, work.rows, work.amounts, seconds, work.sequences)

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


_ALONE = frozenset((Op.EMBED,))
"""What waits for the interpreter while the sweep before is recorded: not so in the first one."""

_BEHIND_ANOTHER = frozenset((Op.ATTN, Op.POST_ATTN, Op.ROUTER))
"""What follows a task of its own lane with nothing else to wait for."""

_EVEN = Hardware("any", dict.fromkeys((CPU_FLOPS, DRAM, DISK, HOST), 1.0))
"""What times are recorded for is of no interest here."""


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
