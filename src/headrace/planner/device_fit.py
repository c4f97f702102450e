"""Make a policy beside an accelerator fit every tier, weights divided as ``device_split`` says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from headrace.planner.candidates import Situation, kv_blocks
from headrace.planner.costs import Known, SweepCosts, Totals
from headrace.planner.device_census import Divisible, Shares
from headrace.planner.device_kinds import kinds_of
from headrace.planner.device_map import Budgets, device_map, parts_of
from headrace.planner.device_split import Split, Terms, best_split
from headrace.planner.estimate import about
from headrace.planner.job_estimate import Course, course_of
from headrace.planner.memory_map import MemoryMap, arena_bytes
from headrace.planner.sketch import Kind as TaskKind
from headrace.planner.sweeps import Load
from headrace.planner.works import Works
from headrace.schedule.lanes import CPU, GPU
from headrace.schedule.tally import Kind
from headrace.schedule.task import Op
from headrace.specs.hardware import DRAM
from headrace.specs.policy import Policy
from headrace.specs.scratch import READ_SLACK
from headrace.specs.units import format_bytes

_SAME_TASKS = ("cgopipe", "fastdecode", "one_by_one")
_UPLOADS = (Op.UPLOAD_PAGE,)


@dataclass(frozen=True)
class Choice:
    """What a search enumerates: schedule, sequences, rows of a sweep, micro-batches, prompt rows'
    limit (``compute_rows``), the share of KV on the device, and whether experts may be split."""

    schedule: str
    seqs: int
    rows: int
    parts: int
    compute_rows: int = 1 << 30
    kv_on_device: float = 0.0
    held: bool = True  # experts may be resident, as many as fit
    beside: bool = False  # experts may be the processor's


@dataclass(frozen=True)
class Fit:
    """A choice that fits, and about how long the job takes."""

    choice: Choice
    policy: Policy  # without its pages
    split: Split
    course: Course
    seconds: float


class Fitter:
    """Fits choices for one situation. Costs about half a millisecond each."""

    def __init__(self, at: Situation) -> None:
        self.at = at
        self.divisible = Divisible(at.kinds)
        capacity = at.hardware.capacity
        device = capacity.get("device", 0) if at.device_bytes is None else at.device_bytes
        self.budgets = Budgets(
            device, at.budget_bytes, capacity.get("pinned"), at.disk_bytes, at.hardware.devices
        )
        self.job = at.job
        self._rooms: dict[tuple[object, ...], tuple[float, float]] = {}
        self._known: dict[tuple[object, ...], Totals] = {}
        self._shared: dict[tuple[object, ...], Known] = {}
        self._kinds: dict[tuple[object, ...], tuple[TaskKind, ...]] = {}

    def fit(self, choice: Choice) -> Fit | None:
        """``choice`` with the best split of experts; None if it cannot fit."""
        policy = self.skeleton(choice)
        course = course_of(self.job, policy)
        terms = self._terms(choice, policy, course.typical)
        if terms is None:
            return None
        split = self._split(choice, terms)
        if split is None or not self._fits_disk(split):
            return None
        seconds = course.seconds(lambda load: self.sweep_seconds(policy, split, load))
        return Fit(choice, policy, split, course, seconds)

    def holding(self, fit: Fit, share: float) -> Fit:
        """``fit`` with this ``share`` of experts resident on the device, whether or not they have
        room there; so much less comes from disk, if anything does."""
        disk = max(0.0, fit.split.disk - (share - fit.split.resident))
        split = fit.split._replace(resident=share, disk=disk)
        seconds = fit.course.seconds(lambda load: self.sweep_seconds(fit.policy, split, load))
        return replace(fit, split=split, seconds=seconds)

    def sweep_seconds(self, policy: Policy, split: Split, load: Load) -> float:
        """About a steady sweep of ``load``."""
        return about(policy, self.at.model.layers, self._totals(policy, split, load))

    def lanes(self, policy: Policy, split: Split, load: Load) -> dict[str, float]:
        """Busy seconds of each lane in a sweep of ``load``."""
        busy: dict[str, float] = {}
        for kind, total in self._totals(policy, split, load).items():
            busy[kind.lane] = busy.get(kind.lane, 0.0) + total.alone
        return busy

    def skeleton(self, choice: Choice) -> Policy:
        """The policy of ``choice`` before pages are placed."""
        fixed = self.at.overrides
        return Policy(
            choice.schedule,
            max_rows=choice.rows,
            max_seqs=choice.seqs,
            micro_batches=choice.parts,
            chunk=fixed.chunk,
            compute_rows=min(choice.compute_rows, choice.rows),
            resident=frozenset(),
            ring_slots=0 if choice.schedule == "resident" else 1,
            slot_bytes=self._slot_bytes,
            disk_lanes=fixed.disk_lanes or self._disk_lanes,
            kv_blocks=kv_blocks(self.at, choice.seqs),
            kv_block=fixed.kv_block,
            kv_dtype=fixed.kv_dtype,
            threads=fixed.threads,
            kernels=fixed.kernels,
            activations=fixed.activations,
            compute="device",
            kv_on_device=choice.kv_on_device,
        )

    # -- costs -------------------------------------------------------------------------------

    def _totals(self, policy: Policy, shares: Split | Shares, load: Load) -> Totals:
        """Of a sweep; schedules that are made of the same tasks share theirs."""
        alike = "cpu" if policy.schedule in _SAME_TASKS else policy.schedule
        tasks = alike, policy.micro_batches, policy.device_kv_parts
        key = (*tasks, *shares[:3], load)
        if key not in self._known:
            census = self.divisible.census(Shares(*shares[:3]))
            shared = self._shared.setdefault(tasks, {})
            kinds = self._kinds_of(policy, shares.cpu > 0, shares.disk > 0)
            self._known[key] = SweepCosts(census, policy, self._works, shared).of(load, kinds)
        return self._known[key]

    def _kinds_of(self, policy: Policy, cpu: bool, disk: bool) -> tuple[TaskKind, ...]:
        stays = policy.device_kv_parts == policy.micro_batches
        key = policy.schedule, stays, cpu, disk
        if key not in self._kinds:
            turns = self.divisible.turns
            self._kinds[key] = kinds_of(policy, turns, rows_read=True, cpu=cpu, disk=disk)
        return self._kinds[key]

    @cached_property
    def _works(self) -> Works:
        """Of any policy on the device: only experts are ever on disk."""
        pages = self.divisible.census(Shares()).examples()
        policy = self.skeleton(Choice("cgopipe", 1, 1, 1))
        return Works(self.at.model, pages, policy, self.at.hardware)

    def _terms(self, choice: Choice, policy: Policy, load: Load) -> Terms | None:
        """The split's program; None if the rest alone does not fit."""
        device, host = self.rooms(policy)
        if device < 0 or host < 0:
            return None
        streaming = self._totals(policy, Shares(), load)
        beside: Totals = self._totals(policy, Shares(cpu=1.0), load) if choice.beside else {}
        return Terms(
            weights=self.weights,
            ring=self._ring,
            device_room=self._device_room(choice, device),
            host_room=host - (self._rounding(choice) if choice.beside else 0),
            link=_busy(streaming, "link", moved=False),
            whole_link=_busy(streaming, "link", moved=True),
            cpu=_busy(streaming, CPU),
            whole_cpu=max(0.0, _busy(beside, CPU) - _busy(streaming, CPU)),
            gpu=_busy(streaming, GPU),
            whole_disk=self._disk_seconds,
            dram=_roof(streaming, DRAM, moved=False),
            whole_dram_streamed=_roof(streaming, DRAM, moved=True),
            whole_dram_cpu=max(
                0.0, _roof(beside, DRAM, moved=False) - _roof(streaming, DRAM, moved=False)
            ),
        )

    def _device_room(self, choice: Choice, room: float) -> float:
        """What a split may count on: rounding to pages takes some, or nothing but the ring may."""
        if choice.schedule == "resident":
            return room
        room = max(0.0, room - 2 * self._rounding(choice))
        return room if choice.held else min(room, self._ring * self.weights)

    def _rounding(self, choice: Choice) -> int:
        """Bytes that a layer's share may be above its mean: a page, and an expert's pages where
        the processor has some."""
        pages = 1 + (self._pages_per_expert if choice.beside else 0)
        return pages * arena_bytes(self._slot_bytes)

    @property
    def _pages_per_expert(self) -> int:
        return math.ceil(len(self.layer_of) / len(self.experts))

    @cached_property
    def _disk_seconds(self) -> float:
        """Of reading all experts."""
        share = self.at.hardware.efficiency_of(Op.READ_PAGE.value, 1)
        lanes = (self.at.overrides.disk_lanes or self._disk_lanes) * self.at.hardware.lane_rate
        rate = min(self.at.hardware.roofs.get("disk", 0.0), lanes) * share
        return sum(k.total_bytes for k in self.divisible.experts) / rate if rate else math.inf

    @cached_property
    def _disk_lanes(self) -> int:
        rate = self.at.hardware.lane_rate
        lanes = math.ceil(self.at.hardware.roofs.get("disk", 0.0) / rate) if rate else 1
        return max(1, min(4, lanes))

    # -- bytes -------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> int:
        """Bytes of divisible experts, as an arena takes them."""
        return _arena(self.divisible.experts)

    @cached_property
    def _slot_bytes(self) -> int:
        return max(kind.page.bytes for kind in self.divisible.experts)

    @cached_property
    def _ring(self) -> float:
        """Share of streamed bytes that the ring takes: two layers' pages in the largest slots."""
        layers = sum(1 for sets in self.at.kinds.experts_of.values() if self._divides(sets))
        pages = sum(len(kind.ids) for kind in self.divisible.experts)
        return 2.0 / layers * arena_bytes(self._slot_bytes) * pages / self.weights

    def _divides(self, sets: Iterable[frozenset[int]]) -> bool:
        ids = self.experts_ids
        return any(found & ids for found in sets)

    @cached_property
    def experts_ids(self) -> frozenset[int]:
        """Ids of divisible pages."""
        return frozenset().union(*(kind.ids for kind in self.divisible.experts))

    @cached_property
    def layer_of(self) -> dict[int, int]:
        """Layer of each divisible page, in order of use."""
        ids = self.experts_ids
        return {p.id: p.layer or 0 for p in self.at.kinds.pages if p.id in ids}

    @cached_property
    def experts(self) -> dict[tuple[int, int], list[int]]:
        """Divisible pages by layer and expert."""
        found: dict[tuple[int, int], list[int]] = {}
        ids = self.experts_ids
        for page in self.at.kinds.pages:
            if page.id in ids:
                found.setdefault((page.layer or 0, page.expert or 0), []).append(page.id)
        return found

    @cached_property
    def others_ids(self) -> frozenset[int]:
        """Ids of pages that always stay."""
        return frozenset().union(*(kind.ids for kind in self.divisible.others))

    def rooms(self, policy: Policy) -> tuple[float, float]:
        """Bytes of device and host memory left for experts under ``policy``."""
        key = (
            policy.schedule if policy.attention_on_device else "",
            *(policy.max_rows, policy.max_seqs, policy.micro_batches, policy.kv_on_device),
        )
        if key not in self._rooms:  # the same for all that attend on the processor
            self._rooms[key] = self._rooms_of(policy)
        return self._rooms[key]

    def _rooms_of(self, policy: Policy) -> tuple[float, float]:
        parts = parts_of(self.at.kinds, policy, self.budgets.devices)
        device = self.budgets.device - sum(parts["device"].values()) - _arena(self.divisible.others)
        table = _arena(self.at.kinds.table)
        used = sum(parts["host"].values()) + sum(parts["pinned"].values())
        return float(device), float(self.budgets.host - used - table)

    def _fits_disk(self, split: Split) -> bool:
        whole = sum(kind.total_bytes for kind in self.divisible.experts)
        return self.budgets.disk is None or split.disk * whole <= self.budgets.disk

    def _split(self, choice: Choice, terms: Terms) -> Split | None:
        if choice.schedule == "resident":
            fits = terms.device_room >= terms.weights
            return Split(1.0, 0.0, 0.0, terms.gpu) if fits else None
        staging = self.stage_slots * arena_bytes(self._slot_bytes + READ_SLACK)
        if terms.host_room < terms.weights:  # some may come from disk, through pinned slots
            terms = replace(terms, host_room=terms.host_room - staging)
        if terms.host_room < 0 or terms.device_room <= 0:
            return None
        return best_split(terms, 1.0 if choice.beside else 0.0)

    @property
    def stage_slots(self) -> int:
        """Pinned slots on the way from disk to device."""
        return 2 * (self.at.overrides.disk_lanes or self._disk_lanes) + 2

    @property
    def refusal(self) -> str:
        """Why a family of policies has none that fits."""
        others = _arena(self.divisible.others)
        return (
            f"does not fit {format_bytes(self.budgets.device)} of device and "
            f"{format_bytes(self.budgets.host)} of host memory: experts take "
            f"{format_bytes(self.weights)}, other weights {format_bytes(others)}"
        )

    def map_of(self, policy: Policy) -> MemoryMap:
        """What ``policy`` takes of each tier."""
        return device_map(self.at.kinds, policy, self.budgets)


def _arena(kinds: Iterable[Kind]) -> int:
    return sum(arena_bytes(kind.page.bytes) * len(kind.ids) for kind in kinds)


def _busy(totals: Totals, lane: str, moved: bool | None = None) -> float:
    """Busy seconds of a lane; with ``moved``, of weights only or of all else."""
    return sum(
        total.alone
        for kind, total in totals.items()
        if kind.lane == lane and moved in (None, kind.op in _UPLOADS)
    )


def _roof(totals: Totals, roof: str, *, moved: bool) -> float:
    return sum(
        total.roofs.get(roof, 0.0)
        for kind, total in totals.items()
        if moved == (kind.op in _UPLOADS)
    )
