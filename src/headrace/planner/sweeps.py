"""How long one steady sweep takes, as a function of its load.

The amounts come from ``schedule.work`` and the rates from ``hardware``, with the efficiency
of each operation. Lanes add up their tasks; how well they overlap is played once per few row
counts on the virtual machine and kept as a ratio to the busiest lane.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from headrace.batching.microbatch import used_micro_batches
from headrace.planner.stalls import together
from headrace.planner.timed import OTHERS, name_of
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.tally import Kinds, tally
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work, alone
from headrace.specs.hardware import DISK, DRAM, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

_PER_SAMPLE = (Op.FINAL, Op.LOGITS, Op.SAMPLE, Op.COMMIT)
_STEP = 2**0.25


class Load(NamedTuple):
    """What one sweep carries: ``decodes`` rows over ``decode_kv`` tokens in all, ``chunk_rows``
    of prompts that attend to ``chunk_kv`` tokens on average, ``samples`` tokens to draw."""

    decodes: int
    decode_kv: int = 0
    chunk_rows: int = 0
    chunk_kv: int = 0
    samples: int = 0

    @property
    def rows(self) -> int:
        """Rows of the sweep."""
        return self.decodes + self.chunk_rows


class LaneSeconds(NamedTuple):
    """Busy seconds of one sweep: arithmetic, and the disk."""

    cpu: float
    disk: float

    @property
    def busiest(self) -> float:
        """No sweep takes less."""
        return max(self.cpu, self.disk)


Overlap = Callable[[int], float]
"""Rows -> seconds of a steady sweep over those of its busiest lane, at least 1."""


def perfect_overlap(rows: int) -> float:
    """What a ring deep enough comes close to."""
    return 1.0


@dataclass
class SweepTimes:
    """Sweep times under one policy. Results are kept per row count (steps of 19 %) and
    interpolated, so that a job of thousands of sweeps costs a few dozen evaluations."""

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    hardware: Hardware
    overlap: Overlap = perfect_overlap
    kinds: Kinds | None = None  # of ``pages``, where they are known already
    _rows: dict[int, LaneSeconds] = field(default_factory=dict, repr=False)
    _samples: dict[int, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.hardware = as_run(self.hardware, self.policy.schedule)
        kinds = self.kinds or Kinds(self.model, self.pages)
        self._work = WorkModel(self.model, self.pages, self.policy, kinds=kinds)
        counted = tally(kinds, self.policy)
        self._head = [each for each in counted if each.task.op in _PER_SAMPLE]
        attention = [each for each in counted if each.task.op is Op.ATTN]
        self._attn = [each for each in attention if not each.task.mb]
        self._body = [each for each in counted if each.task.op not in (*_PER_SAMPLE, Op.ATTN)]
        self._fixed = self.hardware.fixed_seconds_of
        apart = (*self._head, *attention)
        self._overhead = sum(each.count * self._fixed(each.task.op.value) for each in apart)

    @property
    def disk_rate(self) -> float:
        """Bytes/s that the policy's disk lanes reach together, beside little arithmetic."""
        return self._disk_rate(1)

    def _disk_rate(self, rows: float) -> float:
        return disk_rate(self.hardware, self.policy.disk_lanes, rows)

    def seconds(self, load: Load) -> float:
        """Seconds of a steady sweep."""
        lanes = self.lanes(load)
        return lanes.busiest * self.overlap(load.rows)

    def lanes(self, load: Load) -> LaneSeconds:
        """Busy seconds of each lane, contention included."""
        cpu, disk = self._apart(load)
        longer = contended(self.hardware, cpu, disk)
        return LaneSeconds(cpu + longer, disk + longer)

    def _apart(self, load: Load) -> LaneSeconds:
        """The same where no lane is in another's way."""
        cpu = _between(lambda rows: self._rows_at(rows).cpu, load.rows)
        disk = _between(lambda rows: self._rows_at(rows).disk, load.rows)
        head = _between(self._samples_at, load.samples)
        return LaneSeconds(cpu + head + self._attention(load), disk)

    def bound(self, load: Load) -> float:
        """Seconds of the busiest lane; at the efficiencies that operations reach, unlike that of
        ``prices``."""
        return self.lanes(load).busiest

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """Bytes of a sweep: those of the disk."""
        return {DISK: self._apart(load).disk * self._disk_rate(load.rows)}

    def tail_seconds(self, load: Load) -> float:
        """Arithmetic between the last expert of a sweep and the first of the next: head,
        sampling, embedding and the first layer's attention."""
        head = _between(self._samples_at, load.samples)
        start = sum(
            self._cpu_seconds(task.op, self._work.work(task, self._binding(load.rows, 0)))
            for task, _ in self._body
            if task.op in (Op.EMBED, Op.PRE_ATTN, Op.POST_ATTN, Op.ROUTER)
        )
        return head + start + self._attention(load) / self.model.layers

    def balanced_rows(self, most: int = 8192) -> int:
        """n_real: the most rows whose arithmetic hides behind the disk's work; ``most`` if
        nothing is read at all or the disk is slower still."""
        if not self.lanes(Load(1)).disk:
            return most
        return bisect.bisect_left(range(1, most), True, key=self._computes) + 1

    def _computes(self, rows: int) -> bool:
        lanes = self.lanes(Load(rows, samples=rows // 2))
        return lanes.cpu > lanes.disk

    def _rows_at(self, rows: int) -> LaneSeconds:
        if rows not in self._rows:
            binding = self._binding(rows, 0)
            cpu = disk = 0.0
            for task, count in self._body:
                work = self._work.work(task, binding)
                cpu += count * self._fixed(task.op.value, work.chance)
                if DISK in work.amounts:
                    disk += count * work.amounts[DISK] / self._disk_rate(rows)
                else:
                    cpu += count * self._cpu_seconds(task.op, work)
            self._rows[rows] = LaneSeconds(cpu + self._overhead, disk)
        return self._rows[rows]

    def _samples_at(self, samples: int) -> float:
        if samples not in self._samples:
            binding = self._binding(samples, samples)
            self._samples[samples] = sum(
                count * self._cpu_seconds(task.op, self._work.work(task, binding))
                for task, count in self._head
            )
        return self._samples[samples]

    def _attention(self, load: Load) -> float:
        """All layers' attention."""
        return sum(count * self._attention_of(task, load) for task, count in self._attn)

    def _attention_of(self, task: Task, load: Load) -> float:
        """One layer's: decodes over their mean length, one chunk over its own."""
        total = 0.0
        if load.decodes:
            extent = Extent(1, max(1, load.decode_kv // load.decodes))
            total += self._cpu_seconds(Op.ATTN, self._attn_work(task, extent).times(load.decodes))
        if load.chunk_rows:
            kv = max(load.chunk_rows, load.chunk_kv)
            # several prompts share a chunk: each attends to its own tokens only
            rows = min(load.chunk_rows, max(1, load.chunk_kv))
            parts = load.chunk_rows / rows
            extent = Extent(rows, kv if parts == 1 else load.chunk_kv)
            total += self._cpu_seconds(Op.ATTN, self._attn_work(task, extent).times(parts))
        return total

    def _attn_work(self, task: Task, extent: Extent) -> Work:
        others = ((),) * (self.policy.micro_batches - 1)
        return self._work.work(task, Binding(((extent,), *others)))

    def _binding(self, rows: int, samples: int) -> Binding:
        """Rows in as few micro-batches as the batcher uses, as evenly."""
        count = used_micro_batches(rows, self.policy)
        shares = [rows * (i + 1) // count - rows * i // count for i in range(count)]
        extents = tuple((Extent(n, n),) if n else () for n in shares)
        drawn = tuple(samples * (i + 1) // count - samples * i // count for i in range(count))
        empty = self.policy.micro_batches - count
        return Binding(extents + ((),) * empty, drawn + (0,) * empty)

    def _cpu_seconds(self, op: Op, work: Work) -> float:
        return alone(work, self.hardware, op.value).seconds


def disk_rate(hardware: Hardware, lanes: int, rows: float) -> float:
    """Bytes/s that ``lanes`` requests in flight reach beside a sweep of ``rows`` rows."""
    share = hardware.efficiency_of(Op.READ_PAGE.value, rows)
    return min(hardware.roofs[DISK], lanes * hardware.lane_rate, hardware.roofs[DRAM]) * share


def contended(hardware: Hardware, arithmetic: float, reads: float) -> float:
    """Seconds that a sweep's arithmetic and its reads each take longer beside each other than
    apart, given what they take apart."""
    return hardware.contention * together(arithmetic, reads)


def as_run(hardware: Hardware, schedule: str) -> Hardware:
    """The machine as sweeps of ``schedule`` meet it: with its own curves, where it has any, as far
    as they go; where more rows were seen, of many rows all are alike. Their arithmetic waits for
    reads so often that the two are hardly in each other's way."""
    if schedule not in OTHERS:
        return hardware
    own = {op: hardware.efficiency.get(name_of(op, schedule)) for op in hardware.efficiency}
    known = {
        op: (
            *curve,
            *(point for point in hardware.efficiency[op] if point[0] > _BEYOND * curve[-1][0]),
        )
        for op, curve in own.items()
        if curve is not None
    }
    if not known and not hardware.contention:
        return hardware
    return replace(hardware, efficiency={**hardware.efficiency, **known}, contention=0.0)


_BEYOND = 1.25
"""Times the rows of a curve's last point from which on another's points continue it."""


def _between(at: Callable[[int], float], value: int) -> float:
    """Linear between the two nearest points of a geometric grid."""
    if value <= 8:
        return at(value) if value else 0.0
    step = math.floor(math.log(value, _STEP) + 1e-9)
    low, high = round(_STEP**step), round(_STEP ** (step + 1))
    a, b = at(low), at(high)
    return a + (b - a) * (value - low) / (high - low)
