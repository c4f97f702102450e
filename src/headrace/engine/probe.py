"""What ``calibrate`` times: the engine's own bodies, lanes, reads and buffers, on a few layers of
the model at hand.

Rows and KV are kept small, so that probing fits beside any budget and takes a few seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from headrace.engine.loaded import Loaded
from headrace.engine.rehearsal import Rehearsal
from headrace.engine.session import torch_threads
from headrace.kernels.native import available, native_module
from headrace.kernels.quantized import quantize
from headrace.kernels.select import select
from headrace.memory.arena import Arena
from headrace.memory.disk import REQUEST_BYTES
from headrace.memory.disk_rate import measure_rate
from headrace.memory.kvcache import DTYPES
from headrace.planner.calibrate import Probes, measure
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import tile_elements

SECONDS = 8.0
"""What measuring a machine for a run takes."""

READ_BYTES = 64_000_000
"""What is read at a time while the disk is measured."""

SWEPT_BYTES, LEAST_SWEPT = 256 << 20, 64 << 20
"""Memory read from end to end: well beyond the caches, but a part of what the run may take."""

_READ_SHARE, _PLAY_SHARE = 0.1, 0.03  # of the seconds, for each depth and for each load

_STAYING, _RING, _MOST_STAYING = 0.9, 6, 0.9
"""In most plans: of the budget, what weights that stay and the ring take together, and pages in the
ring; and experts that may stay at most, so that reads are rehearsed."""

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
    known: Hardware | None = None,
    seconds: float = SECONDS,
) -> Hardware:
    """This machine's roofs, and how close this model's operations come to them: beside reads,
    if the model does not fit ``capacity_bytes`` and will stream.

    ``known`` spares the measurement of roofs: those of a profile. Takes about ``seconds``, a
    third of it less with ``known``.
    """
    weights = sum(loaded.page_bytes.values())
    streams = weights > capacity_bytes
    before = torch.get_num_threads()
    swept = _swept_bytes(capacity_bytes)
    kept = Rehearsal(
        loaded,
        clock,
        streams=streams,
        room_bytes=capacity_bytes - swept,
        held=_held(loaded, capacity_bytes),
        threads=threads,
        kv_dtype=kv_dtype,
        kernels=kernels,
        activations=activations,
    )
    torch.set_num_threads(torch_threads(kept.policy))
    memory = _SweepMemory(threads, swept)
    try:
        with torch.inference_mode():
            return measure(
                Probes(
                    read_rate=ReadRate(loaded, clock, _READ_SHARE * seconds),
                    sgemm=_Product(kept.model, kept.policy),
                    sweep_memory=memory,
                    rehearse=lambda: (one.tasks for one in kept.play(_PLAY_SHARE * seconds)),
                    sample=kept.sample,
                ),
                clock,
                name="this machine",
                capacity={"host": capacity_bytes},
                known=known,
            )
    finally:
        memory.close()
        kept.close()
        torch.set_num_threads(before)


def _held(loaded: Loaded, capacity_bytes: int) -> float:
    """Share of the experts that stay in about any plan: what else is multiplied comes before them.
    Beside more reads the same arithmetic takes longer."""
    experts = [loaded.page_bytes[page.id] for page in loaded.pages if page.expert is not None]
    if not experts:
        return 0.0
    others = sum(loaded.page_bytes.values()) - sum(experts)
    room = _STAYING * capacity_bytes - others - _RING * max(experts)
    return max(0.0, min(_MOST_STAYING, room / sum(experts)))


def _swept_bytes(capacity_bytes: int) -> int:
    """A quarter of what the run may take; LEAST_SWEPT, if that is no more than a third."""
    least = min(LEAST_SWEPT, capacity_bytes // 3)
    return max(4096, min(SWEPT_BYTES, max(least, capacity_bytes // 4)) // 4096 * 4096)


class ReadRate:
    """Direct reads of the checkpoint itself, a page's worth each (or ``request`` bytes), in file
    order and never the same bytes twice in a row. A disk may give more for a moment than it keeps
    up: what counts is all that was read over all the time it took."""

    def __init__(
        self, loaded: Loaded, clock: Clock, seconds: float, request: int | None = None
    ) -> None:
        self._reader = loaded.reader
        self._clock = clock
        self._seconds = seconds
        page = max(loaded.page_bytes.values())
        self._request = request or max(1 << 20, min(page, REQUEST_BYTES))
        self._start = 0

    def __call__(self, depth: int) -> float:
        """Bytes/s with ``depth`` requests in flight."""
        moved = seconds = 0.0
        while seconds < self._seconds:
            rate = measure_rate(
                self._reader, READ_BYTES, depth, self._clock, self._request, self._start
            )
            self._start += READ_BYTES
            moved += rate.bytes
            seconds += rate.seconds
        return moved / max(seconds, 1e-9)


class _Product:
    """One product of the kernels that will run, with weights as stored: M = 512, large and square
    otherwise. This is the roof of arithmetic."""

    def __init__(self, model: ModelSpec, policy: Policy, rows: int = 512, size: int = 2048) -> None:
        self._linear = select(policy.kernels, policy.threads, policy.activations).linear
        self._x, self._w = torch.randn(rows, size), _stored(model, torch.randn(size, size))
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
    """Memory read from end to end by all threads: an arena's, in large pages as a run's. It is
    touched beforehand: page faults are not the memory's time."""

    def __init__(self, threads: int, size: int = SWEPT_BYTES) -> None:
        self._arena = Arena("sweep", size)
        self._block = torch.frombuffer(self._arena.take("all", size), dtype=torch.float32)
        self._block.fill_(1.0)
        self._threads = threads

    def __call__(self) -> float:
        if available():
            at, size = self._block.data_ptr(), self._block.nbytes
            native_module().read_all(at, size, self._threads)
        else:
            self._block.sum()
        return float(self._block.nbytes)

    def close(self) -> None:
        """Give the memory back: the run's own comes after it."""
        self._block = torch.empty(0)
        self._arena.close()


class Contention(NamedTuple):
    """What reads and arithmetic keep of their rates while both go on: shares of each alone."""

    reads: float
    arithmetic: float


def measure_contention(loaded: Loaded, clock: Clock, threads: int, seconds: float) -> Contention:
    """Reads, two in flight, beside the largest product, for about three times ``seconds``."""
    model = loaded.model
    policy = Policy(schedule="resident", max_rows=1, max_seqs=1, threads=threads)
    with torch.inference_mode():
        product = _Product(model, policy)
        alone = _rate_of(product, clock, seconds)
        reads_alone = ReadRate(loaded, clock, seconds)(2)
        with ThreadPoolExecutor(1) as reader:
            reads = reader.submit(ReadRate(loaded, clock, seconds), 2)
            beside = _rate_of(product, clock, seconds)
    return Contention(min(1.0, reads.result() / reads_alone), min(1.0, beside / alone))


def _rate_of(once: Callable[[], float], clock: Clock, seconds: float) -> float:
    once()
    began, units = clock(), 0.0
    while clock() - began < seconds:
        units += once()
    return units / (clock() - began)


def usable_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
