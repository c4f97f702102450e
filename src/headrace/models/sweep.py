"""Index tensors of one sweep's batch: computed once, used by every layer.

They live on the sweep object, next to the batch they are derived from, and die with it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.kernels.reference import Piece, inverse_frequencies
from headrace.kernels.select import Kernels
from headrace.schedule.binding import Binding
from headrace.schedule.task import Op, Task
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import attention_tile


@dataclass(frozen=True)
class RowIndex:
    """Rows of one micro-batch, r of them, as tensors.

    ``attention`` is the kernels' own plan of it. ``offset`` is the first row's number in the
    sweep; ``tokens``, ``slots`` (place in the KV of a layer, in tokens) are int64 [r]; ``cos``
    and ``sin`` [r, d/2]; ``sampled`` the rows that draw a token, and ``first_sample`` their
    first place in ``logits``.
    """

    rows: int
    offset: int
    tokens: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    attention: Any
    sampled: Tensor
    first_sample: int


class Sweep(Protocol):
    """What op bodies need of the engine's sweep object.

    ``batch`` is set by BIND; bodies fill ``binding.routed`` and ``binding.page_bytes``;
    ``indices`` starts empty and belongs to the bodies.
    """

    @property
    def batch(self) -> Batch:
        """The sweep's micro-batches."""
        ...

    @property
    def binding(self) -> Binding:
        """Amounts, completed as the sweep runs."""
        ...

    @property
    def indices(self) -> MutableMapping[int, RowIndex]:
        """Micro-batch -> index."""
        ...


def nothing_to_do(task: Task, sweep: Sweep) -> bool:
    """Whether ``task`` is of an expert to which the routers sent no row: there is nothing to
    multiply, and nothing to read if the read waited for them. Of few rows most are, while another
    lane wants the interpreter: only what routers counted is looked at."""
    expert = task.expert
    if expert is None or (task.op is Op.READ_PAGE and not waits_for_routers(task)):
        return False
    counts = sweep.binding.routed.get(task.layer or 0)
    return counts is not None and not counts[expert]


def waits_for_routers(task: Task) -> bool:
    """Whether the read ``task`` waits until its layer's rows have chosen, so that it may be spared.
    (One that waits for its turn only is made whoever chose it.)"""
    return any(buffer.name == "routing" for buffer in task.reads)


class Indexer:
    """Makes the indices of a micro-batch when it is first asked for them."""

    def __init__(self, model: ModelSpec, policy: Policy, kernels: Kernels) -> None:
        self._plan = kernels.plan_attention
        self._rope_tables = kernels.rope_tables
        self._frequencies, self._rope_scale = inverse_frequencies(model.rope, model.head_dim)
        self._tile = attention_tile(model, policy)
        self._block = policy.kv_block
        self._window = model.sliding_window

    def of(self, sweep: Sweep, mb: int) -> RowIndex:
        """Index of micro-batch ``mb``; costs a few microseconds per row, once."""
        index = sweep.indices.get(mb)
        if index is None:
            index = sweep.indices[mb] = self._make(sweep.batch, mb)
        return index

    def _make(self, batch: Batch, mb: int) -> RowIndex:
        before, here = batch.micro_batches[:mb], batch.micro_batches[mb]
        positions = [p for s in here.segments for p in range(s.start, s.kv_len)]
        places = torch.tensor(positions, dtype=torch.int64)
        cos, sin = self._rope_tables(places, self._frequencies, self._rope_scale)
        return RowIndex(
            rows=here.rows,
            offset=sum(m.rows for m in before),
            tokens=torch.tensor([t for s in here.segments for t in s.tokens], dtype=torch.int64),
            slots=torch.tensor(self._slots(here.segments), dtype=torch.int64),
            cos=cos,
            sin=sin,
            attention=self._plan(_pieces(here), self._tile, self._block, self._window),
            sampled=torch.tensor(_sampled(here), dtype=torch.int64),
            first_sample=sum(s.sample for m in before for s in m.segments),
        )

    def _slots(self, segments: tuple[Segment, ...]) -> list[int]:
        block = self._block
        return [
            s.blocks[position // block] * block + position % block
            for s in segments
            for position in range(s.start, s.kv_len)
        ]


def _pieces(micro_batch: MicroBatch) -> list[Piece]:
    pieces, row = [], 0
    for s in micro_batch.segments:
        if s.rows:
            pieces.append(Piece(row, s.rows, s.start, s.blocks))
        row += s.rows
    return pieces


def _sampled(micro_batch: MicroBatch) -> list[int]:
    sampled, row = [], -1
    for s in micro_batch.segments:
        row += s.rows
        if s.sample:
            sampled.append(row)
    return sampled
