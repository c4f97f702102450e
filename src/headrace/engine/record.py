"""What a run did, a sweep at a time: bytes, FLOPs, rows, seconds. Spans only on request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.batching.counters import Counters
from headrace.engine.sweep import Sweep
from headrace.machines.trace import RunTotals, SweepTrace
from headrace.memory.pages import PageTable
from headrace.planner.sweeps import as_run, contended, disk_rate
from headrace.schedule.binding import Binding
from headrace.schedule.tally import Alike
from headrace.schedule.task import Op, Schedule, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import alone
from headrace.specs.hardware import CPU_FLOPS, DISK, Hardware

MOST_SPANS = 12_000
"""Spans kept for a timeline: an overnight job has many millions, which no budget counts."""

_EXPERTS = frozenset((Op.EXPERT, Op.EXPERT_UP, Op.EXPERT_DOWN, Op.MOE))

_BY_ROWS = frozenset(
    (Op.BIND, Op.EMBED, Op.PRE_ATTN, Op.POST_ATTN, Op.ROUTER, Op.FINAL, Op.LOGITS, Op.SAMPLE)
)
"""What they cost depends on how many rows and samples each sequence has, not on its length."""

_READS = frozenset((Op.READ_PAGE, Op.READ_ROWS))

log = logging.getLogger("headrace.record")


class SweepAmounts(NamedTuple):
    """One sweep: bytes it needed from disk, its FLOPs, its rows, and the seconds it added."""

    needed_bytes: int
    flops: float
    prefill_rows: int
    decode_rows: int
    seconds: float


@dataclass
class Record:
    """Totals of one run. ``keep_traces`` keeps the spans of its first sweeps, for a timeline:
    all of them up to MOST_SPANS, and the log says when there were more.

    ``predicted`` sums, by op, what the tasks that compute were expected to take on ``hardware``
    with the rows they had. ``disk_seconds`` is the time in which at least one page was being read:
    lanes of the same disk are busy together. ``bytes_read`` counts sweeps cut short as well,
    ``before`` is where the batcher's counters stood when the run began.
    """

    table: PageTable
    work: WorkModel
    keep_traces: bool = False
    totals: RunTotals = field(default_factory=RunTotals)
    sweeps: list[SweepAmounts] = field(default_factory=list)
    bytes_read: int = 0
    disk_seconds: float = 0.0
    hardware: Hardware | None = None
    predicted: dict[str, float] = field(default_factory=dict)
    traces: list[SweepTrace] = field(default_factory=list)
    before: Counters = field(default_factory=Counters)
    _disk_until: float = 0.0
    _last_end: float | None = None
    _spans: int = 0
    _kinds: dict[str, _Kinds] = field(default_factory=dict, repr=False)
    _last: tuple[object, _Sums] | None = field(default=None, repr=False)
    _expert_sums: dict[tuple[str, int], _Sums] = field(default_factory=dict, repr=False)
    _as_run: dict[str, Hardware] = field(default_factory=dict, repr=False)

    def add(self, trace: SweepTrace) -> None:
        """Count a sweep that has ended. Sweeps arrive in order."""
        sweep = trace.sweep
        assert isinstance(sweep, Sweep)
        self.totals.add(trace)
        began = trace.start if self._last_end is None else self._last_end
        self._last_end = trace.end
        self._add_disk(trace)
        self.bytes_read += sweep.binding.bytes_read
        decodes = sweep.batch.decode_rows
        self.sweeps.append(
            SweepAmounts(
                needed_bytes=self._needed(trace, sweep),
                flops=self._flops(trace.schedule, sweep.binding),
                prefill_rows=sweep.batch.rows - decodes,
                decode_rows=decodes,
                seconds=trace.end - began,
            )
        )
        if self.keep_traces:
            self._keep(trace)

    def _keep(self, trace: SweepTrace) -> None:
        self._spans += len(trace.spans)
        if self._spans <= MOST_SPANS:
            self.traces.append(trace)
        elif self._spans - len(trace.spans) <= MOST_SPANS:
            log.warning("the trace holds the first %d sweeps, not all", len(self.traces))

    def cut(self, sweep: Sweep) -> None:
        """Count the reads of a sweep that was cut short: nobody needed them."""
        self.bytes_read += sweep.binding.bytes_read

    @property
    def needed_bytes(self) -> int:
        """Bytes of the pages that some row used and that were not resident."""
        return sum(s.needed_bytes for s in self.sweeps)

    def bound_seconds(self, hardware: Hardware) -> float:
        """Sum over sweeps of the longer of reading what is needed and multiplying it."""
        disk, flops = hardware.roofs[DISK], hardware.roofs[CPU_FLOPS]
        return sum(max(s.needed_bytes / disk, s.flops / flops) for s in self.sweeps)

    def rates(self) -> tuple[float, float]:
        """(prefill, decode) tokens per second. A sweep's seconds are shared by rows."""
        prefill = decode = prefill_seconds = decode_seconds = 0.0
        for s in self.sweeps:
            rows = s.prefill_rows + s.decode_rows
            if rows:
                prefill += s.prefill_rows
                decode += s.decode_rows
                prefill_seconds += s.seconds * s.prefill_rows / rows
                decode_seconds += s.seconds * s.decode_rows / rows
        return _rate(prefill, prefill_seconds), _rate(decode, decode_seconds)

    def _add_disk(self, trace: SweepTrace) -> None:
        tasks = trace.schedule.tasks
        reads = [span for span in trace.spans if tasks[span.task].op is Op.READ_PAGE]
        for span in sorted(reads, key=lambda s: s.start):
            self.disk_seconds += max(0.0, span.end - max(span.start, self._disk_until))
            self._disk_until = max(self._disk_until, span.end)

    def _flops(self, schedule: Schedule, binding: Binding) -> float:
        """FLOPs of a sweep; adds to ``predicted``. Those of its experts are worked out once per
        number of rows: a row visits as many experts of a layer, all of one size, whichever they
        are. What depends on rows alone is as it was in the sweep before, as a rule."""
        known = Binding(binding.extents, binding.samples)
        key = schedule.name, known.rows
        if schedule.name not in self._kinds:
            self._kinds[schedule.name] = self._divided(schedule)
        kinds = self._kinds[schedule.name]
        if key not in self._expert_sums:
            self._expert_sums[key] = self._sum(schedule.name, kinds.experts, known)
        counts = tuple([tuple([e.rows for e in mb]) for mb in known.extents])
        shape = schedule.name, counts, known.samples
        if self._last is None or self._last[0] != shape:
            self._last = shape, self._sum(schedule.name, kinds.by_rows, known)
        others = self._sum(schedule.name, kinds.others, known)
        each = self._expert_sums[key], self._last[1], others
        longer = self._contended(schedule.name, each, binding)
        for found in each:
            for op, seconds in found.seconds.items():
                self.predicted[op] = self.predicted.get(op, 0.0) + longer * seconds
        return sum(found.flops for found in each)

    def _contended(self, schedule: str, each: Sequence[_Sums], binding: Binding) -> float:
        """Times as long that the arithmetic of a sweep takes beside what it read."""
        hardware = None if self.hardware is None else self._met(schedule, self.hardware)
        cpu = sum(seconds for found in each for seconds in found.seconds.values())
        if hardware is None or not (hardware.contention and cpu and binding.bytes_read):
            return 1.0
        rate = disk_rate(hardware, self.work.policy.disk_lanes, binding.rows)
        return 1 + contended(hardware, cpu, binding.bytes_read / rate) / cpu

    def _sum(self, schedule: str, tasks: Iterable[Alike], binding: Binding) -> _Sums:
        flops, seconds = 0.0, dict[str, float]()
        hardware = None if self.hardware is None else self._met(schedule, self.hardware)
        for task, count in tasks:
            work = self.work.work(task, binding)
            flops += count * work.amounts.get(CPU_FLOPS, 0.0)
            if hardware is not None:
                op = task.op.value
                each = alone(work, hardware, op).seconds + hardware.own_seconds_of(op)
                seconds[op] = seconds.get(op, 0.0) + count * each
        return _Sums(flops, seconds)

    def _met(self, schedule: str, hardware: Hardware) -> Hardware:
        """The machine as sweeps of ``schedule`` meet it."""
        if schedule not in self._as_run:
            self._as_run[schedule] = as_run(hardware, schedule)
        return self._as_run[schedule]

    def _divided(self, schedule: Schedule) -> _Kinds:
        """The tasks that compute; those that cost the same, whatever the load, once. A sweep is
        added while the next one runs: this must be quick."""
        pages = {page.id: page.bytes for page in self.table.pages}
        window = self.work.model.window_of
        groups: dict[tuple[object, ...], list[Task]] = {}
        for task in schedule.tasks:
            size, layer = pages.get(task.page or 0) if task.page is not None else None, task.layer
            seen = None if layer is None else (window(layer), self.work.model.is_routed(layer))
            key = (task.op, task.lane, task.mb, size, task.expert is None, seen)
            groups.setdefault(key, []).append(task)
        alike = [Alike(tasks[0], len(tasks)) for tasks in groups.values()]
        told_apart = _EXPERTS | _BY_ROWS | _READS
        return _Kinds(
            [each for each in alike if each.task.op in _EXPERTS],
            [each for each in alike if each.task.op in _BY_ROWS],
            [each for each in alike if each.task.op not in told_apart],
        )

    def _needed(self, trace: SweepTrace, sweep: Sweep) -> int:
        """Bytes of pages that are not resident and that some row used, and of distinct rows."""
        if not sweep.batch.rows:
            return 0
        reads = (t for t in trace.schedule.tasks if t.op is Op.READ_PAGE)
        pages = sum(self.table.needed_bytes(_page(t)) for t in reads if _used(t, sweep))
        if sweep.binding.row_bytes is None:
            return pages
        segments = (s for m in sweep.batch.micro_batches for s in m.segments)
        return pages + len({t for s in segments for t in s.tokens}) * self.table.row_bytes()


class _Kinds(NamedTuple):
    """The tasks of a schedule that compute, by what their costs depend on."""

    experts: list[Alike]
    by_rows: list[Alike]
    others: list[Alike]


class _Sums(NamedTuple):
    """FLOPs of some tasks, and predicted seconds by op."""

    flops: float
    seconds: dict[str, float]


def _used(task: Task, sweep: Sweep) -> bool:
    if task.expert is None or task.layer not in sweep.binding.routed:
        return True
    return sweep.binding.routed[task.layer][task.expert] > 0


def _page(task: Task) -> int:
    assert task.page is not None
    return task.page


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
