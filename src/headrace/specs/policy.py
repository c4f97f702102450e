"""A policy: every free choice of a run, as one value, made by the planner."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UsageError
from headrace.specs.model import KV_FORMATS

SCHEDULES = ("resident", "one_by_one", "stream", "on_demand")
"""Names of the schedules that can run on a CPU and its disk."""

DEVICE_SCHEDULES = (
    *("resident", "one_by_one"),
    *("flexgen", "flexgen_c", "fastdecode", "cgopipe", "two_group"),
)
"""Names of the schedules of an accelerator beside a host."""

ON_DEVICE_ATTENTION = ("resident", "flexgen")
"""Those among them whose attention runs on the accelerator (A_g); the others' on the CPU."""

COMPUTE = ("host", "device")

PAGE_SETS = ("resident", "on_disk", "cpu_experts")
"""Fields that hold page ids."""

KERNELS = ("auto", "native", "reference")
"""Whose arithmetic: the native module's where it was built (auto), or the torch reference."""


WITH_INTEGERS = ("int8", "f32")
"""What integer weights are multiplied with: rows rounded to 8 bits, or left as they are."""

ACTIVATIONS = (*WITH_INTEGERS, "bf16")
"""And what bf16 weights are, if asked for: rows rounded to bf16. Other floats always meet fp32."""


@dataclass(frozen=True)
class Policy:
    """How to run one model on one machine.

    ``max_rows`` is N, the most rows (tokens) in a sweep; ``max_seqs`` is S; ``mu`` rows at
    most in each of the ``micro_batches``. ``compute_rows`` is n_real, the rows at which
    compute becomes the bound: prefill is admitted up to it. ``resident`` holds page ids kept
    on the compute tier; the others stream through ``ring_slots`` slots of ``slot_bytes``
    filled by ``disk_lanes`` lanes. KV lives in ``kv_blocks`` blocks of ``kv_block`` tokens.
    ``kernels`` names the arithmetic, ``threads`` how many threads it may use, ``activations``
    what weights are multiplied with: integers int8 or f32, floats f32 unless it is bf16.

    ``compute`` is the tier of experts and projections (F_g): ``host``, or ``device`` for an
    accelerator. There, pages that are not resident have their home in pinned host memory, or, if
    ``pageable``, in memory from which they are first copied into one of ``stage_slots`` pinned
    slots; those in ``on_disk`` are read into such a slot. ``kv_on_device`` (r_c) is the share of
    micro-batches whose KV stays on the device, of schedules that attend there (A_g). r_w is the
    share of bytes in ``resident``. ``cpu_experts`` are pages (of whole experts) that the processor
    multiplies where they are, in host memory, beside the device.
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
    activations: str = "int8"
    compute: str = "host"
    pageable: bool = False
    on_disk: frozenset[int] = frozenset()
    stage_slots: int = 0
    kv_on_device: float = 0.0
    cpu_experts: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.compute not in COMPUTE:
            raise UsageError("policy compute", expected=" | ".join(COMPUTE), got=self.compute)
        schedules = DEVICE_SCHEDULES if self.on_device else SCHEDULES
        if self.schedule not in schedules:
            raise UsageError(
                f"schedule with compute on the {self.compute}",
                expected=" | ".join(schedules),
                got=self.schedule,
            )
        for name in ("max_rows", "max_seqs", "micro_batches", "chunk", "kv_block", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"policy {name}", expected="at least 1", got=getattr(self, name))
        if self.kernels not in KERNELS:
            raise UsageError("kernels", expected=" | ".join(KERNELS), got=self.kernels)
        if self.activations not in ACTIVATIONS:
            raise UsageError("activations", expected=" | ".join(ACTIVATIONS), got=self.activations)
        if self.kv_dtype not in KV_FORMATS:
            raise UsageError("kv dtype", expected=" | ".join(KV_FORMATS), got=self.kv_dtype)
        if self.max_seqs > self.max_rows:
            raise UsageError(
                "more sequences than rows in a sweep",
                expected="max_seqs <= max_rows",
                got=f"{self.max_seqs} > {self.max_rows}",
            )

        self._check_tiers()

    def _check_tiers(self) -> None:
        if not 0.0 <= self.kv_on_device <= 1.0:
            raise UsageError("share of KV on the device", expected="0 to 1", got=self.kv_on_device)
        if self.kv_on_device and not self.attention_on_device:
            raise UsageError(
                "KV on the device",
                expected="a schedule that attends there",
                got=f"{self.schedule} with compute on the {self.compute}",
            )
        beside = self.pageable or self.on_disk or self.stage_slots or self.cpu_experts
        if not self.on_device and beside:
            raise UsageError("homes of pages are a choice only with compute on the device")
        if self.cpu_experts & (self.resident | self.on_disk):
            raise UsageError(
                "experts of the processor",
                expected="pages at home in host memory",
                got="some that are resident on the device, or on disk",
            )
        if self.cpu_experts and self.schedule == "resident":
            raise UsageError("experts of the processor under a schedule that streams nothing")

    @property
    def on_device(self) -> bool:
        """Whether an accelerator multiplies (F_g)."""
        return self.compute == "device"

    @property
    def attention_on_device(self) -> bool:
        """Whether it attends as well (A_g)."""
        return self.on_device and self.schedule in ON_DEVICE_ATTENTION

    @property
    def device_kv_parts(self) -> int:
        """Micro-batches, from the first, whose KV stays on the device."""
        if self.attention_on_device and self.schedule == "resident":
            return self.micro_batches
        return round(self.kv_on_device * self.micro_batches)

    @property
    def mu(self) -> int:
        """Most rows of one micro-batch."""
        return -(-self.max_rows // self.micro_batches)
