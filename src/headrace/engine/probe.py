"""What ``calibrate`` times: the engine's own bodies, lanes, reads and buffers, on a few layers of
the model at hand.

Rows and KV are kept small, so that probing fits beside any budget and takes a few seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from headrace.engine.loaded import Loaded
from headrace.engine.rehearsal import Rehearsal
from headrace.engine.session import torch_threads
from headrace.kernels.native import available, native_module
from headrace.kernels.quantized import quantize
from headrace.kernels.select import select
from headrace.memory.disk_rate import measure_rate
from headrace.memory.kvcache import DTYPES
from headrace.planner.calibrate import Probes, measure
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import tile_elements

READ_BYTES = 64_000_000
READ_SECONDS = 0.7
"""What is read at a time, and how long one measurement of the disk reads at least."""

PLAY_SECONDS = 0.25
"""How long each load is rehearsed."""

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
    kept = Rehearsal(
        loaded,
        clock,
        streams=streams,
        room_bytes=capacity_bytes,
        threads=threads,
        kv_dtype=kv_dtype,
        kernels=kernels,
        activations=activations,
    )
    torch.set_num_threads(torch_threads(kept.policy))
    try:
        with torch.inference_mode():
            return measure(
                Probes(
                    read_rate=_ReadRate(loaded, clock),
                    sgemm=_Product(kept.model, kept.policy),
                    sweep_memory=_SweepMemory(threads),
                    rehearse=lambda: (played.tasks for played in kept.play(PLAY_SECONDS)),
                    sample=kept.sample,
                    task=kept.idle_tasks,
                ),
                clock,
                name="this machine",
                capacity={"host": capacity_bytes},
            )
    finally:
        kept.close()
        torch.set_num_threads(before)


class _ReadRate:
    """Direct reads of the checkpoint itself, a page's worth each, in file order and never the same
    bytes twice in a row. A disk may give more for a moment than it keeps up: what counts is all
    that was read over all the time it took."""

    def __init__(self, loaded: Loaded, clock: Clock, seconds: float = READ_SECONDS) -> None:
        self._reader = loaded.reader
        self._clock = clock
        self._seconds = seconds
        self._request = max(1 << 20, min(max(loaded.page_bytes.values()), 16 << 20))
        self._start = 0

    def __call__(self, depth: int) -> float:
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
    """Memory read from end to end by all threads. It is taken and touched beforehand: page faults
    are not the memory's time."""

    def __init__(self, threads: int, size: int = 256 << 20) -> None:
        self._block = torch.ones(size // 4)
        self._threads = threads

    def __call__(self) -> float:
        if available():
            at, size = self._block.data_ptr(), self._block.nbytes
            native_module().read_all(at, size, self._threads)
        else:
            self._block.sum()
        return float(self._block.nbytes)


def usable_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
