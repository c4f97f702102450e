"""Tasks, the buffers they touch, and the schedule: a list of tasks in serial order.

Structure only: no times, no waits, no amounts. Running the list from top to bottom is the
definition of what it means; waits are derived from reads and writes (``waits.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Op(StrEnum):
    """What a task does. ``models.bodies`` gives each its arithmetic, ``work.py`` its cost."""

    BIND = "bind"  # fill this sweep's batch, after the last sweep's commit
    READ_ROWS = "read_rows"  # embedding rows of this batch from disk
    READ_PAGE = "read_page"  # one page from disk into a ring slot
    EMBED = "embed"
    PRE_ATTN = "pre_attn"  # norm, QKV, RoPE, append K and V
    ATTN = "attn"
    POST_ATTN = "post_attn"  # output projection, residual, norm
    ROUTER = "router"
    EXPERT = "expert"  # gather routed rows, gate/up, SiLU, down, weighted add
    EXPERT_UP = "expert_up"  # a row block of gate/up into the intermediate
    EXPERT_DOWN = "expert_down"  # a row block of down from the intermediate
    MOE = "moe"  # all experts of a layer at once (resident)
    FINAL = "final"  # final norm of the rows to sample
    LOGITS = "logits"  # a row block of the head
    SAMPLE = "sample"
    COMMIT = "commit"  # advance KV lengths, finish sequences
    # beside an accelerator
    STAGE_PAGE = "stage_page"  # one page from pageable memory into a pinned slot
    UPLOAD_PAGE = "upload_page"  # one page from pinned memory into a ring slot of the device
    LOAD_ROWS = "load_rows"  # embedding rows to the device
    OFFLOAD_QKV = "offload_qkv"  # queries, keys and values of a micro-batch to the host
    LOAD_HIDDEN = "load_hidden"  # what the processor attended, to the device
    LOAD_KV = "load_kv"  # a micro-batch's cached keys and values of a layer to the device
    STORE_KV = "store_kv"  # its new ones to the host
    OFFLOAD_HIDDEN = "offload_hidden"  # normed rows and routing to the host, for experts there
    LOAD_PARTIAL = "load_partial"  # what the processor's experts add, to the device
    COMBINE = "combine"  # added to the device's own
    BARRIER = "barrier"  # a step of a runtime that waits for all of it


class Buffer(NamedTuple):
    """A named piece of memory (or of host state). Equal names are the same bytes.

    Names: ``requests`` (batcher state) and ``batch`` (what BIND wrote) are host objects;
    ``rows`` embedding rows read from disk; ``hidden`` (j) and ``normed`` (j) [mu, D] of
    micro-batch j; ``q`` and ``attended`` [mu, H d]; ``routing`` (j) ids and gates [mu, k];
    ``kv`` (l) all KV blocks of layer l; ``page`` (id) a resident page; ``slot`` (i) a ring
    slot; ``inter`` [N, W] of a cut expert; ``final`` [S, D]; ``logits`` [S, V];
    ``sampled``; ``scratch`` of the compute lane; ``baton`` serialises one_by_one.

    Beside an accelerator all of these but ``kv`` are the device's, and there are: ``home`` (id)
    a page in pageable, ``pinned`` (id) in pinned memory; ``stage`` (i) a pinned slot on the way;
    ``rows_sent`` [N, D] on the device; ``qkv`` (i) of the device and ``qkv_host`` (i) [mu, Q + KV
    elements]; ``attended_host`` (i) and ``attended`` (i) [mu, attended]; ``kv_part`` (l M + j)
    the KV blocks of micro-batch j in layer l; ``kv_slot`` (i) such a part on the device;
    ``kv_new`` (i) keys and values of a micro-batch's new rows; ``scratch_host``. Where some
    experts are the processor's: ``normed_host`` (i) [mu, D], ``routing_host`` (i), and
    ``partial_host`` (i), ``partial`` (i) [mu, D].
    """

    name: str
    index: int = 0  # type: ignore[assignment]  # hides tuple.index

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"


class Size(NamedTuple):
    """Where a buffer lives and how many bytes it takes at the policy's maxima.

    Tier ``state`` is host objects that no arena holds (0 bytes).
    """

    tier: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Task:
    """One entry of a schedule. A buffer updated in place stands in both reads and writes.

    ``page`` is the page id a READ_PAGE moves or a compute task multiplies with; ``mb`` the
    micro-batch; MOE tasks read all pages of ``layer``.
    """

    op: Op
    lane: str
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    layer: int | None = None
    mb: int | None = None
    page: int | None = None
    expert: int | None = None

    @property
    def label(self) -> str:
        """Short name for traces, as ``expert L3 E5``."""
        marks = (("L", self.layer), ("mb", self.mb), ("E", self.expert), ("p", self.page))
        return " ".join([self.op.value, *(f"{m}{v}" for m, v in marks if v is not None)])


@dataclass(frozen=True)
class Schedule:
    """Tasks in serial order and the size of every buffer they touch."""

    name: str
    tasks: tuple[Task, ...]
    sizes: Mapping[Buffer, Size]

    @property
    def lanes(self) -> tuple[str, ...]:
        """Lanes in order of first use."""
        return tuple(dict.fromkeys(t.lane for t in self.tasks))
