"""Published throughput replayed: what the simulator says of each row, with six named constants.

The rows, and where they and the constants come from, stand in ``published.toml``. A constant is a
figure that the literature measured, or one fitted on the rows of FITTED_ON; none is fitted per row.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from headrace.planner.batches import simulate_as
from headrace.planner.simulate import Prediction
from headrace.planner.traits import RUNTIMES, Traits
from headrace.schedule.task import Op
from headrace.specs.hardware import CPU_FLOPS, DRAM, GPU_FLOPS, HBM, Curve, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, page_layout
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload

MODEL = "mixtral-8x7b"
FITTED_ON = (32, 128)
"""Generation lengths whose MTBench rows the fitted constants may know."""

WHOLE_EXPERTS = 1 << 40
"""Bytes above which pages are cut: published runtimes move an expert at a time."""

_KV_BLOCK = 16


@dataclass(frozen=True)
class Constant:
    """A number that prices published runtimes, and where it comes from."""

    value: float
    source: str
    fitted: bool = False


@dataclass(frozen=True)
class Row:
    """One published figure. Lengths in tokens; ``mu`` x ``parts`` requests (None: unknown) of each
    batch."""

    system: str
    runtime: str
    tokens_per_second: float
    model: str = MODEL
    machine: str = "t4"
    task: str = "MTBench"
    prompt_mean: int = 77
    prompt_max: int = 418
    gen: int = 128
    padded: bool = True
    mu: int | None = None
    parts: int | None = None
    on_device: float = 0.0
    wall_seconds: float | None = None


@dataclass(frozen=True)
class Replayed:
    """A row and what the simulator says of it."""

    row: Row
    prediction: Prediction
    fitted_on: bool

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, simulated."""
        return self.prediction.decode_tokens_per_second

    @property
    def residual(self) -> float:
        """Simulated over published, less 1."""
        return self.tokens_per_second / self.row.tokens_per_second - 1


@dataclass(frozen=True)
class Published:
    """The data file."""

    constants: Mapping[str, Constant]
    machines: Mapping[str, Mapping[str, Any]]
    rows: tuple[Row, ...]
    ablation: tuple[Row, ...]
    carried: tuple[Row, ...]
    several: tuple[Row, ...]

    def fitted_on(self, row: Row) -> bool:
        """Whether the constants were fitted with this figure in sight."""
        known = [r for r in self.rows if r.task == "MTBench" and r.gen in FITTED_ON]
        keys = {(r.machine, r.runtime, r.padded, r.gen, r.mu, r.parts) for r in known}
        return (row.machine, row.runtime, row.padded, row.gen, row.mu, row.parts) in keys

    def with_values(self, values: Mapping[str, float]) -> Published:
        """The same with other values of some constants."""
        changed = {
            name: replace(c, value=values.get(name, c.value)) for name, c in self.constants.items()
        }
        return replace(self, constants=changed)


def read_published() -> Published:
    """The figures that come with the package."""
    with Path(__file__).with_name("published.toml").open("rb") as stream:
        data: dict[str, Any] = tomllib.load(stream)
    constants = {name: Constant(**entry) for name, entry in data["constants"].items()}
    tables = (tuple(Row(**row) for row in data[key]) for key in _TABLES)
    return Published(constants, data["machines"], *tables)


_TABLES = ("row", "ablation", "carried", "several")


class Replay:
    """Prices published rows under one set of constants."""

    def __init__(self, published: Published) -> None:
        self.published = published
        self._models: dict[str, _Model] = {}

    def rows(self, rows: Sequence[Row]) -> list[Replayed]:
        """Each of ``rows`` with its prediction."""
        fitted_on = self.published.fitted_on
        return [Replayed(row, self.predict(row), fitted_on(row)) for row in rows]

    def predict(self, row: Row) -> Prediction:
        """A batch of the row's requests, by the runtime that published it."""
        traits = replace(RUNTIMES[row.runtime], padded=row.padded)
        model = self._model(row.model)
        hardware = self.hardware(row.machine, traits, model.spec)
        policy = self._policy(row, model)
        prompt = row.prompt_max if row.padded else row.prompt_mean
        job = Workload.uniform(policy.max_seqs * traits.batches(hardware), prompt, row.gen)
        return simulate_as(traits, model.spec, model.pages, policy, hardware, job)

    def hardware(self, machine: str, traits: Traits, model: ModelSpec) -> Hardware:
        """The machine as a published runtime uses it."""
        known = known_hardware(machine).hardware
        return as_published(known, self.published, model, traits)

    def _model(self, name: str) -> _Model:
        if name not in self._models:
            spec = known_model(name).spec
            self._models[name] = _Model(spec, page_layout(spec, WHOLE_EXPERTS))
        return self._models[name]

    def _policy(self, row: Row, model: _Model) -> Policy:
        tokens = (row.prompt_max if row.padded else row.prompt_mean) + row.gen
        requests, parts = (row.mu or 0) * (row.parts or 0), row.parts or 1
        if row.runtime == "zero":
            held = int(self.published.constants["zero_kv_tokens"].value) // tokens
            requests, parts = requests or held, 1
        experts = [p for p in model.pages if p.expert is not None]
        count = round(row.on_device * len(experts))
        held_experts = {experts[i * len(experts) // count].id for i in range(count)}
        others = {p.id for p in model.pages if p.expert is None}
        return Policy(
            RUNTIMES[row.runtime].schedule or "flexgen",
            max_rows=requests,
            max_seqs=requests,
            micro_batches=parts,
            resident=frozenset(others | held_experts),
            ring_slots=2 * model.spec.experts,
            slot_bytes=max(p.bytes for p in model.pages),
            kv_blocks=requests * -(-tokens // _KV_BLOCK),
            compute="device",
        )


class _Model(NamedTuple):
    spec: ModelSpec
    pages: tuple[Page, ...]


def as_published(
    hardware: Hardware, published: Published, model: ModelSpec, traits: Traits
) -> Hardware:
    """``hardware`` as a published runtime of ``traits`` uses it for ``model``: shares of its roofs
    that it reaches, what a task costs it. On tensor cores kernels reach their share of the card's
    full peak instead of that of the units which most of the published ones use."""
    values = {name: constant.value for name, constant in published.constants.items()}
    machine = published.machines.get(hardware.name, {})
    flops = hardware.roofs.get(GPU_FLOPS, 0.0)
    slower = "kernel_flops" in machine and not traits.tensor_cores
    peak = machine["kernel_flops"] * hardware.devices if slower else flops
    reached = values["gpu_flops_share"] * peak
    curves: dict[str, Curve] = {}
    if flops:
        curve = _kernel_curve(hardware, values["hbm_share"], reached / flops)
        curves |= {f"gpu.{op.value}": curve for op in _KERNELS}
    dram = hardware.roofs[DRAM]
    used = {DRAM: values["dram_share"] * dram}
    if traits.expands_kv or machine.get("slow_attention"):  # a rate of KV, not the memory's
        used[CPU_FLOPS] = values["kv_share"] * dram * _flops_a_byte(model)
    return replace(
        hardware,
        roofs={**hardware.roofs, **used},
        efficiency=curves,
        task_seconds=values["task_seconds"],
    )


_KERNELS = (
    *(Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.ROUTER, Op.LOGITS),
    *(Op.MOE, Op.EXPERT, Op.EXPERT_UP, Op.EXPERT_DOWN),
)


def _flops_a_byte(model: ModelSpec) -> float:
    """FLOP of a decode's attention for each byte of 16-bit KV that it reads: the query heads of a
    KV head; each head meets the latent vector of ``Mla`` as a key, and most of it as a value."""
    if model.mla:
        return model.heads * (model.mla.cached + model.mla.kv_rank) / model.mla.cached
    return model.heads / model.kv_heads


def summary(found: Sequence[Replayed]) -> dict[str, float | int | None]:
    """Residuals of MoE-Lightning's rows that no constant was fitted on, and how far the baselines
    are off at most, as a factor (None: there is none)."""
    held_out = [r for r in found if r.row.runtime == "moe-lightning" and not r.fitted_on]
    others = [1 + r.residual for r in found if r.row.runtime != "moe-lightning"]
    errors = [abs(r.residual) for r in held_out]
    return {
        "rows": len(held_out),
        "median_error": median(errors),
        "worst_error": max(errors),
        "baselines_worst_factor": max((max(r, 1 / r) for r in others), default=None),
    }


def swapped(found: Sequence[Replayed]) -> Iterator[tuple[Replayed, Replayed]]:
    """Pairs of one machine, model, task and length whose order is another in simulation than was
    published."""
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            if _asked_of(a.row) != _asked_of(b.row):
                continue
            published = a.row.tokens_per_second - b.row.tokens_per_second
            if published * (a.tokens_per_second - b.tokens_per_second) < 0:
                yield a, b


def _asked_of(row: Row) -> tuple[object, ...]:
    return row.machine, row.model, row.task, row.gen


def _kernel_curve(hardware: Hardware, memory: float, arithmetic: float) -> Curve:
    """Share of the roof over rows per matrix of 16-bit weights: r rows are about r FLOP a byte.
    Reading takes 1/memory, multiplying 1/arithmetic as long as at the roofs; the longer counts."""
    ridge = hardware.roofs[GPU_FLOPS] / hardware.roofs[HBM]
    points = []
    for power in range(15):
        rows = 2.0**power
        taken = max(1.0 / memory, rows / ridge / arithmetic)
        points.append((rows, max(1.0, rows / ridge) / taken))
    return tuple(points)
