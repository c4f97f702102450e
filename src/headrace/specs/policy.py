"""A policy: every free choice of a run, as one value, made by the planner."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UsageError
from headrace.specs.model import KV_FORMATS

SCHEDULES = ("resident", "one_by_one", "stream", "on_demand")
"""Names of the schedules that can run on a CPU and its disk."""

KERNELS = ("auto", "native", "reference")
"""Whose arithmetic: the native module's where it was built (auto), or the torch reference."""


@dataclass(frozen=True)
class Policy:
    """How to run one model on one machine.

    ``max_rows`` is N, the most rows (tokens) in a sweep; ``max_seqs`` is S; ``mu`` rows at
    most in each of the ``micro_batches``. ``compute_rows`` is n_real, the rows at which
    compute becomes the bound: prefill is admitted up to it. ``resident`` holds page ids kept
    on the compute tier; the others stream through ``ring_slots`` slots of ``slot_bytes``
    filled by ``disk_lanes`` lanes. KV lives in ``kv_blocks`` blocks of ``kv_block`` tokens.
    ``kernels`` names the arithmetic, ``threads`` how many threads it may use.
    """

    schedule: str
    max_rows: int
    max_seqs: int
    micro_batches: int = 1
    chunk: int = 64
    compute_rows: int = 1 << 30
    resident: frozenset[int] = frozenset()
    ring_slots: int = 0
    slot_bytes: int = 0
    disk_lanes: int = 2
    kv_blocks: int = 0
    kv_block: int = 16
    kv_dtype: str = "f16"
    threads: int = 1
    kernels: str = "auto"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError("schedule", expected=" | ".join(SCHEDULES), got=self.schedule)
        for name in ("max_rows", "max_seqs", "micro_batches", "chunk", "kv_block", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"policy {name}", expected="at least 1", got=getattr(self, name))
        if self.kernels not in KERNELS:
            raise UsageError("kernels", expected=" | ".join(KERNELS), got=self.kernels)
        if self.kv_dtype not in KV_FORMATS:
            raise UsageError("kv dtype", expected=" | ".join(KV_FORMATS), got=self.kv_dtype)
        if self.max_seqs > self.max_rows:
            raise UsageError(
                "more sequences than rows in a sweep",
                expected="max_seqs <= max_rows",
                got=f"{self.max_seqs} > {self.max_rows}",
            )

    @property
    def mu(self) -> int:
        """Most rows of one micro-batch."""
        return -(-self.max_rows // self.micro_batches)
