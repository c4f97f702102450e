"""What ``calibrate`` times: the engine's own bodies, reads and buffers, on one layer.

Shapes are those of the model at hand; rows and KV are kept small, so that probing fits beside
any budget and takes a few seconds.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.engine.loaded import Loaded
from headrace.engine.sampler import Sampler, SampleRow
from headrace.engine.session import torch_threads
from headrace.engine.sweep import Sweep
from headrace.kernels.quantized import quantize
from headrace.kernels.reference import Routing
from headrace.kernels.select import select
from headrace.memory.arena import Arena
from headrace.memory.disk_rate import measure_rate
from headrace.memory.kvcache import DTYPES
from headrace.models.bodies import make_bodies
from headrace.models.workspace import Workspace
from headrace.planner.calibrate import OpProbe, Probes, measure
from headrace.planner.memory_map import arena_bytes
from headrace.schedule.generate import generate
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.sampling import SamplingParams
from headrace.specs.scratch import tile_elements

MAX_ROWS = 256
CONTEXT = 128
"""Rows at most, and KV tokens of each, in a probe."""

LANES = 2
"""Reads in flight while operations are timed, as in a run."""

READ_BYTES, LEAST_READ_BYTES = 192_000_000, 24_000_000
READ_SECONDS = 0.5
"""What one measurement of the disk reads, and how long that should take at most."""

Clock = Callable[[], float]


def measure_machine(
    loaded: Loaded,
    clock: Clock,
    *,
    threads: int,
    kv_dtype: str,
    capacity_bytes: int,
    kernels: str = "auto",
    activations: str = "int8",
) -> Hardware:
    """This machine's roofs, and how close this model's operations come to them: beside reads,
    if the model does not fit ``capacity_bytes`` and will stream."""
    streams = sum(loaded.page_bytes.values()) > capacity_bytes
    before = torch.get_num_threads()
    bench = _Bench(loaded, threads, kv_dtype, kernels, activations)
    torch.set_num_threads(torch_threads(bench.policy))
    try:
        with torch.inference_mode():
            return measure(
                Probes(
                    read_rate=_ReadRate(loaded, clock),
                    sgemm=_Product(bench),
                    sweep_memory=_SweepMemory(),
                    ops=bench.ops(),
                    sample=bench.sample,
                    beside=partial(_reads, loaded) if streams else nullcontext,
                ),
                clock,
                name="this machine",
                capacity={"host": capacity_bytes},
            )
    finally:
        bench.close()
        torch.set_num_threads(before)


class _ReadRate:
    """Sequential direct reads of the checkpoint itself, never the same bytes twice."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self._reader = loaded.reader
        self._clock = clock
        self._request = max(1 << 20, min(max(loaded.page_bytes.values()), 16 << 20))
        self._start = 0
        self._bytes: int | None = None

    def __call__(self, depth: int) -> float:
        if self._bytes is None:  # a slow disk reads less
            first = self._read(LEAST_READ_BYTES, depth)
            self._bytes = max(LEAST_READ_BYTES, min(READ_BYTES, int(first * READ_SECONDS)))
        return self._read(self._bytes, depth)

    def _read(self, nbytes: int, depth: int) -> float:
        start, self._start = self._start, self._start + nbytes
        rate = measure_rate(self._reader, nbytes, depth, self._clock, self._request, start)
        return rate.bytes_per_second


@contextmanager
def _reads(loaded: Loaded) -> Iterator[None]:
    """Two lanes that read pages one after the other, as in a run that streams: what they take
    of memory and of the cores is missing from the arithmetic."""
    stop = threading.Event()
    pages = sorted(loaded.page_bytes, key=lambda page: -loaded.page_bytes[page])[:64]

    def lane(first: int) -> None:
        size = max(loaded.page_bytes[page] for page in pages)
        with mmap.mmap(-1, size) as area, memoryview(area) as slot:
            for page in itertools.cycle(pages[first::LANES]):
                if stop.is_set():
                    return
                loaded.table.read(page, slot)

    lanes = [threading.Thread(target=lane, args=(i,), daemon=True) for i in range(LANES)]
    for thread in lanes:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in lanes:
            thread.join()


class _Product:
    """One product of the kernels that will run, with weights as stored: M = 512, large and square
    otherwise. This is the roof of arithmetic."""

    def __init__(self, bench: _Bench, rows: int = 512, size: int = 2048) -> None:
        policy = bench.policy
        self._linear = select(policy.kernels, policy.threads, policy.activations).linear
        self._x, self._w = torch.randn(rows, size), _stored(bench.model, torch.randn(size, size))
        self._out, self._tile = torch.empty(rows, size), torch.empty(tile_elements(size, size))

    def __call__(self) -> float:
        self._linear(self._x, self._w, self._out, self._tile)
        return 2.0 * self._x.shape[0] * math.prod(self._w.shape)


def _stored(model: ModelSpec, weight: torch.Tensor) -> Any:
    """``weight`` as most of the model's are stored."""
    form = model.integers
    if form is None:
        return weight.to(DTYPES[model.weight_dtype])
    return quantize(
        weight,
        form.bits,
        None if form.group is None or weight.shape[1] % form.group else form.group,
        packed=form.packed,
        symmetric=not form.zeros,
        scale_dtype=DTYPES[form.scale],
    )


class _SweepMemory:
    """Memory read from end to end. It is taken and touched beforehand: page faults are not the
    memory's time."""

    def __init__(self, size: int = 64 << 20) -> None:
        self._block = torch.ones(size // 4)

    def __call__(self) -> float:
        self._block.sum()
        return float(self._block.nbytes)


class _Bench:
    """One layer's buffers and bodies, run task by task outside any machine."""

    def __init__(
        self,
        loaded: Loaded,
        threads: int,
        kv_dtype: str,
        kernels: str = "auto",
        activations: str = "int8",
    ) -> None:
        self.model, self.table = loaded.one_layer()
        pages = self.table.pages
        rows = min(MAX_ROWS, max(16, (64 << 20) // (self.model.vocab * 4)))
        streamed = [p.id for p in pages if p.expert is not None]
        resident = frozenset(p.id for p in pages) - set(streamed)
        self.policy = Policy(
            schedule="stream",
            max_rows=MAX_ROWS,
            max_seqs=rows,
            resident=self._small(resident),
            ring_slots=1,
            slot_bytes=self.table.max_slot_bytes(p.id for p in pages),
            kv_blocks=MAX_ROWS // 4 * CONTEXT // 16,
            kv_dtype=kv_dtype,
            threads=threads,
            kernels=kernels,
            activations=activations,
        )
        page_bytes = {page.id: self.table.slot_bytes(page.id) for page in pages}
        sizes = buffer_sizes(self.model, pages, self.policy, page_bytes)
        total = sum(arena_bytes(size.bytes) for size in sizes.values())
        self.arena = Arena("host", total + (1 << 20))
        self.workspace = Workspace(self.model, self.table, self.policy, sizes, self.arena)
        self.workspace.load_resident()
        self.bodies = make_bodies(self.model, self.table, self.policy)
        self.work = WorkModel(self.model, pages, self.policy)
        tasks = generate(self.model, pages, self.policy).tasks
        self.tasks = {task.op: task for task in reversed(tasks)}  # the first of each op
        self.sampler = Sampler(0, self.model.vocab, select(kernels, threads))
        self.filled: int | None = None  # the page in the slot

    def close(self) -> None:
        """Give the memory back."""
        self.bodies = {}
        del self.workspace
        self.table.close()
        self.arena.close()

    def ops(self) -> dict[str, OpProbe]:
        """A probe for every op whose time depends on rows."""
        timed = (
            Op.PRE_ATTN,
            Op.ATTN,
            Op.POST_ATTN,
            Op.ROUTER,
            Op.EXPERT,
            Op.EXPERT_UP,
            Op.EXPERT_DOWN,
            Op.LOGITS,
        )
        probes = {op.value: self._probe(self.tasks[op]) for op in timed if op in self.tasks}
        if Op.EXPERT.value in probes:
            probes[Op.MOE.value] = probes[Op.EXPERT.value]
        return probes

    def sample(self) -> int:
        """Draw greedily for as many rows as there are logits."""
        logits = self.workspace.view(Buffer("logits"))
        logits.zero_()
        row = SampleRow(SamplingParams(temperature=0.0), "probe")
        self.sampler.sample(logits, [row] * len(logits))
        return len(logits)

    def _small(self, resident: frozenset[int]) -> frozenset[int]:
        """All but the pages of large tables: those pass through the slot."""
        tables = {p.id for p in self.table.pages if p.role in ("embed", "head")}
        return resident - tables

    def _probe(self, task: Task) -> OpProbe:
        most = self.policy.max_seqs if task.op is Op.LOGITS else MAX_ROWS
        rows = tuple(r for r in (1, 4, 16, 64, 256) if r <= most)
        sweeps = {r: self._sweep(r, task) for r in rows}
        views = {b: self.workspace.view(b) for b in (*task.reads, *task.writes)}
        body = self.bodies[task.op]

        def run(r: int) -> None:
            self._fill(task)
            self._route(task, r, views)
            body(task, views, sweeps[r])

        def amounts(r: int) -> Mapping[str, float]:
            return self.work.work(task, sweeps[r].binding).amounts

        return OpProbe(run, amounts, rows)

    def _fill(self, task: Task) -> None:
        """Put the task's page into the slot it reads, unless it is there: before the first timed
        run, since each timing begins with one that does not count."""
        slots = [buffer for buffer in task.reads if buffer.name == "slot"]
        if slots and task.page is not None and task.page != self.filled:
            self.table.read(task.page, memoryview(self.workspace.view(slots[0]).numpy()))
            self.filled = task.page

    def _sweep(self, rows: int, task: Task) -> Sweep:
        """``rows`` decodes of CONTEXT tokens; sequences beyond the KV share blocks."""
        per_sequence = CONTEXT // self.policy.kv_block
        count = self.policy.kv_blocks // per_sequence
        segments = tuple(
            Segment(
                sequence=i,
                tokens=(i % self.model.vocab,),
                start=CONTEXT - 1,
                blocks=tuple(range(i % count * per_sequence, (i % count + 1) * per_sequence)),
                sample=i < self.policy.max_seqs,
            )
            for i in range(rows)
        )
        sweep = Sweep(0)
        sweep.bind(Batch((MicroBatch(segments),)))
        if task.expert is not None:
            counts = [0.0] * self.model.experts
            counts[task.expert] = float(rows)
            sweep.binding.routed[0] = tuple(counts)
        return sweep

    def _route(self, task: Task, rows: int, views: Mapping[Buffer, Any]) -> None:
        """Send every row to the task's expert."""
        routing = views.get(Buffer("routing"))
        if isinstance(routing, Routing) and task.expert is not None:
            routing.starts[: task.expert + 1] = 0
            routing.starts[task.expert + 1 :] = rows
            routing.rows[:rows] = torch.arange(rows, dtype=routing.rows.dtype)
            routing.weights[:rows] = 1.0


def usable_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
