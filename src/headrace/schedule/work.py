"""What each task costs: a vector of FLOPs and bytes over roofs, from the sweep's binding.

The virtual machine predicts with these amounts and reports measure against them; there is no
second set of formulas. D hidden, Q = H d, KV = kv_heads d, E experts, k top_k, V vocab; m rows of
a micro-batch, r rows of an expert, s rows to sample. A product [m, a] x [a, b] is 2 m a b FLOPs;
bytes are weights once per task, plus activations in and out: f32 on the processor, 16 bits on an
accelerator. Sums of biases, norms and activation functions are not counted as FLOPs.

Several accelerators (tensor parallelism, Shoeybi et al. 2019): weights, heads and the experts'
width W are divided, so that all of them together do what one would; rows of width D and the router
are whole on each, and count once for each. Attention and experts each end in a sum of [m, D] over
devices, a ring all-reduce through the host's memory; both are counted behind POST_ATTN.

Latent attention is counted in its absorbed form: the up-projection of keys belongs to the
queries (PRE_ATTN), that of values to the output (POST_ATTN), which takes as many FLOPs per row as
projecting the row itself; ATTN takes the cheaper of attending in the latent space and of
expanding the cached vectors first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from headrace.schedule.binding import Attention, Binding
from headrace.schedule.lanes import GPU
from headrace.schedule.moves import Moves, to_device
from headrace.schedule.routing import visit_chance
from headrace.schedule.tally import Kinds
from headrace.schedule.task import Op, Schedule, Task
from headrace.schedule.work_vector import LANE, ROW_READS, SEQUENCES, TOKENS, Work
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, GPU_FLOPS, HBM, HOST, STAGE, Hardware
from headrace.specs.model import ITEM_BYTES, Mla, ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy

BLOCK = 4096
"""Direct reads move whole blocks of this many bytes."""


class WorkModel:
    """The work of every task of a model's schedules under one policy.

    ``correlation`` is the exponent of ``routing.visit_chance`` for sweeps whose routing is not
    known yet: 1 for independent tokens, ``routing.CORRELATED`` for what was measured. ``kinds``
    are those of ``pages``, where they are known already. ``devices`` accelerators work as one.
    """

    def __init__(
        self,
        model: ModelSpec,
        pages: tuple[Page, ...],
        policy: Policy,
        correlation: float = 1.0,
        kinds: Kinds | None = None,
        devices: int = 1,
    ) -> None:
        self.model = model
        self.policy = policy
        self._on_gpu = _Processor(GPU_FLOPS, HBM, 2, devices)
        self._correlation = correlation
        self._kinds = kinds or Kinds(model, pages)
        self._item = ITEM_BYTES[model.weight_dtype]
        self._moves = Moves(model, policy, devices)
        self._devices = devices
        self._formulas: dict[Op, Callable[[Task, Binding], Work]] = {
            Op.BIND: self._bind,
            Op.READ_ROWS: self._read_rows,
            Op.READ_PAGE: self._read_page,
            Op.EMBED: self._embed,
            Op.PRE_ATTN: self._pre_attn,
            Op.ATTN: self._attn,
            Op.POST_ATTN: self._post_attn,
            Op.ROUTER: self._router,
            Op.EXPERT: self._expert,
            Op.EXPERT_UP: self._expert,
            Op.EXPERT_DOWN: self._expert,
            Op.MOE: self._moe,
            Op.FINAL: self._final,
            Op.LOGITS: self._logits,
            Op.SAMPLE: self._sample,
            Op.COMMIT: self._commit,
            Op.STAGE_PAGE: self._stage_page,
            Op.UPLOAD_PAGE: self._upload_page,
            Op.LOAD_ROWS: self._moves.load_rows,
            Op.OFFLOAD_QKV: self._moves.offload_qkv,
            Op.LOAD_HIDDEN: self._moves.load_hidden,
            Op.LOAD_KV: self._moves.load_kv,
            Op.STORE_KV: self._moves.store_kv,
            Op.OFFLOAD_HIDDEN: self._moves.offload_hidden,
            Op.LOAD_PARTIAL: self._moves.load_partial,
            Op.COMBINE: self._combine,
            Op.BARRIER: _nothing,
        }

    def under(self, schedule: str) -> WorkModel:
        """The same policy under another schedule: sweeps of few rows may read what is routed."""
        if schedule == self.policy.schedule:
            return self
        policy = replace(self.policy, schedule=schedule)
        return WorkModel(self.model, (), policy, self._correlation, self._kinds, self._devices)

    def work(self, task: Task, binding: Binding) -> Work:
        """What ``task`` costs in a sweep of ``binding``; a task without rows costs nothing."""
        return self._formulas[task.op](task, binding)

    def sweep_work(self, schedule: Schedule, binding: Binding) -> dict[str, float]:
        """Roof -> amount of the whole sweep."""
        totals: dict[str, float] = {}
        for task in schedule.tasks:
            work = self.work(task, binding)
            for roof, amount in (*work.amounts.items(), *work.crossing.items()):
                totals[roof] = totals.get(roof, 0.0) + amount
        return totals

    def bound_seconds(
        self, schedule: Schedule, bindings: Iterable[Binding], hardware: Hardware
    ) -> float:
        """No machine runs ``schedule`` once per binding in less: the busiest roof or lane, each
        at its full rate (efficiency 1)."""
        busy: dict[str, float] = {}
        for binding in bindings:
            for task in schedule.tasks:
                alone = self.work(task, binding).seconds(hardware)
                lane = f"tasks of {task.lane}"
                busy[lane] = busy.get(lane, 0.0) + max(alone.values(), default=0.0)
                for roof, seconds in alone.items():
                    busy[roof] = busy.get(roof, 0.0) + seconds
        return max(busy.values(), default=0.0)

    # -- of the pages, when first asked for ----------------------------------------------

    @cached_property
    def _projections(self) -> Mapping[int | None, float]:
        """Bytes of a weight of attention, by layer."""
        return {p.layer: _mean_bytes(p) for p in self._kinds.others if p.role is Role.LAYER}

    @cached_property
    def _experts(self) -> Mapping[int, tuple[_Same, ...]]:
        """Expert pages of each layer, those that cost the same together."""
        found: dict[int, dict[tuple[object, ...], list[Page]]] = {}
        for page in self._kinds.pages:
            if page.layer is not None and page.expert is not None:
                by_all = self.model.visited_by_all(page.layer, page.expert)
                of_layer = found.setdefault(page.layer, {})
                of_layer.setdefault((page.role, page.bytes, by_all), []).append(page)
        return {
            layer: tuple(_Same(tuple(s), frozenset(p.id for p in s)) for s in of_layer.values())
            for layer, of_layer in found.items()
        }

    @cached_property
    def _table_on_disk(self) -> bool:
        role = Role.HEAD if self.model.tied_embeddings else Role.EMBED
        on_disk = self.policy.on_disk
        return bool(on_disk) and any(p.role is role and p.id in on_disk for p in self._kinds.others)

    # -- pages and rows ------------------------------------------------------------------

    def _read_rows(self, task: Task, binding: Binding) -> Work:
        row = self.model.hidden * self._item
        if self.policy.on_device and not self._table_on_disk:  # gathered in memory
            return Work({DRAM: 2 * binding.rows * row}, binding.rows)
        moved = binding.row_bytes
        if moved is None:
            moved = binding.rows * (math.ceil((row - 1) / BLOCK) + 1) * BLOCK
        amounts = _disk(task.lane, moved, binding.rows).amounts
        return Work({**amounts, ROW_READS: binding.rows}, binding.rows)

    def _read_page(self, task: Task, binding: Binding) -> Work:
        """A read that waits for the router is passed over where it sent no row."""
        page, chance = self._page(task), 1.0
        if self.policy.schedule == "on_demand" and self._waits_for_router(page):
            chance = self._chance(binding, page)
        moved = binding.page_bytes.get(page.id, page.bytes * chance)
        return _disk(task.lane, moved, binding.rows)._replace(chance=chance)

    def _waits_for_router(self, page: Page) -> bool:
        if page.layer is None or page.expert is None:
            return False
        return not self.model.visited_by_all(page.layer, page.expert)

    def _stage_page(self, task: Task, binding: Binding) -> Work:
        """Read from pageable memory, written to pinned."""
        count = self._page(task).bytes
        return Work({DRAM: 2 * count, STAGE: count}, binding.rows)

    def _upload_page(self, task: Task, binding: Binding) -> Work:
        return to_device(self._page(task).bytes, binding.rows)

    # -- attention -----------------------------------------------------------------------

    def _embed(self, task: Task, binding: Binding) -> Work:
        m, on = _mb_rows(task, binding), self._processor(task)
        row_bytes = on.devices * self.model.hidden * (self._item + on.item)
        return Work({on.memory: m * row_bytes}, m)

    def _pre_attn(self, task: Task, binding: Binding) -> Work:
        model, on = self.model, self._processor(task)
        D, mla = model.hidden, model.mla
        written = model.kv_layer_bytes(self.policy.kv_dtype)
        if mla is None:
            elements = D * (model.q_size + 2 * model.kv_size)
        else:
            queries = (D + model.q_size) * mla.q_rank if mla.q_rank else D * model.q_size
            elements = queries + D * mla.cached + model.heads * mla.nope_dim * mla.kv_rank
        row_bytes = (on.devices * D + model.q_size) * on.item + written
        stored = elements * self._projections[task.layer]
        return _matmul(on, _mb_rows(task, binding), elements, stored, row_bytes)

    def _attn(self, task: Task, binding: Binding) -> Work:
        """QK and PV of every row over the tokens it sees; each sequence's KV is read once. How
        close it gets to the roofs depends on how many rows see a token once it is read: where a
        processor and its disk do all, decodes and prompts of one task each have their own share."""
        model, on, mb = self.model, self._processor(task), task.mb or 0
        sees = mb, model.window_of(task.layer or 0), model.causal
        whole = self._attended(on, _mb_rows(task, binding), binding.attention(*sees))
        parts = () if self.policy.on_device else binding.attention_parts(*sees)
        if len(parts) < 2:
            return whole
        return whole._replace(parts=tuple(self._attended(on, *part) for part in parts))

    def _attended(self, on: _Processor, m: int, seen: Attention) -> Work:
        """``m`` rows, seeing so many tokens."""
        model = self.model
        kv_bytes = seen.tokens * model.kv_layer_bytes(self.policy.kv_dtype)
        activations = m * (model.q_size + model.attended_size) * on.item
        flops = 4 * seen.pairs * model.q_size
        shared = seen.pairs / max(1, seen.tokens)
        if model.mla:
            flops = _latent_flops(model.mla, model.heads, m, seen.pairs, seen.tokens)
        decodes = 0 if self.policy.on_device else seen.decodes
        amounts = {on.flops: flops, on.memory: kv_bytes + activations}
        return Work(amounts, shared, sequences=decodes)

    def _post_attn(self, task: Task, binding: Binding) -> Work:
        model, on = self.model, self._processor(task)
        D, attended = model.hidden, model.attended_size
        elements = attended * D
        if model.mla:
            elements += attended * model.mla.kv_rank
        row_bytes = (attended + 3 * on.devices * D) * on.item
        stored, m = elements * self._projections[task.layer], _mb_rows(task, binding)
        found = _matmul(on, m, elements, stored, row_bytes)
        return found._replace(exchanged=2 * on.summed(m * D))

    # -- experts -------------------------------------------------------------------------

    def _router(self, task: Task, binding: Binding) -> Work:
        D, E, on = self.model.hidden, self.model.experts, self._processor(task)
        shared = self.model.shared
        scores = E + bool(shared and shared.gated)
        row_bytes = on.devices * (D + 2 * self.model.top_k) * on.item
        elements = on.devices * D * scores
        return _matmul(on, _mb_rows(task, binding), elements, elements * self._item, row_bytes)

    def _expert(self, task: Task, binding: Binding) -> Work:
        """One that nobody visits is passed over, but beside an accelerator, which starts all."""
        page = self._page(task)
        found = self._expert_page(self._processor(task), binding, page, task.mb)
        if self.policy.on_device:
            return found
        return found._replace(chance=self._chance(binding, page, task.mb))

    def _moe(self, task: Task, binding: Binding) -> Work:
        on, layer = self._processor(task), task.layer or 0
        totals = {on.flops: 0.0, on.memory: 0.0}
        for same in self._experts[layer]:
            for page, count in self._shares(same, layer, on, binding):
                part = self._expert_page(on, binding, page, task.mb)
                for roof in totals:
                    totals[roof] += count * part.amounts.get(roof, 0.0)
        rows = binding.rows if task.mb is None else binding.mb_rows(task.mb)
        return Work(totals, rows * self.model.visits_in(layer) / self.model.experts_in(layer))

    def _shares(
        self, same: _Same, layer: int, on: _Processor, binding: Binding
    ) -> Iterable[tuple[Page, int]]:
        """Pages whose work stands for that of (how many) others; each for itself once rows per
        expert are known. Beside a device, experts are divided between it and the processor."""
        beside = self.policy.cpu_experts
        theirs = on is _ON_CPU
        if layer in binding.routed:
            pages = same.pages
            if beside:
                pages = tuple(page for page in pages if (page.id in beside) == theirs)
            return [(page, 1) for page in pages]
        count = len(same.ids)
        if beside:
            count = len(same.ids & beside if theirs else same.ids - beside)
        return [(same.pages[0], count)] if count else []

    def _combine(self, task: Task, binding: Binding) -> Work:
        m, on = _mb_rows(task, binding), self._processor(task)
        elements = m * self.model.hidden * on.devices
        return Work({on.flops: elements, on.memory: 3 * elements * on.item}, m)

    def _expert_page(
        self, on: _Processor, binding: Binding, page: Page, mb: int | None = None
    ) -> Work:
        """Rows gathered, multiplied with the page, added back; weights read if anyone came.
        Of one micro-batch, the expert's rows are its share of all rows."""
        r = binding.expert_rows(self.model, page.layer or 0, page.expert or 0)
        if mb is not None:
            r *= binding.mb_rows(mb) / max(1, binding.rows)
        matrices = page.matrix_elements
        weights = page.matrix_bytes * self._chance(binding, page, mb)
        activations = r * 3 * on.devices * self.model.hidden * on.item
        return Work({on.flops: 2 * r * matrices, on.memory: weights + activations}, r)

    def _chance(self, binding: Binding, page: Page, mb: int | None = None) -> float:
        """Chance that an expert gets any row; of a count, whether it did."""
        layer, expert = page.layer or 0, page.expert or 0
        rows = binding.rows if mb is None else binding.mb_rows(mb)
        if self.model.visited_by_all(layer, expert):
            return min(1.0, rows)
        if layer in binding.routed:
            share = rows / max(1, binding.rows)
            return min(1.0, binding.routed[layer][expert] * share)
        return visit_chance(self.model.experts, self.model.top_k, rows, self._correlation)

    # -- head ----------------------------------------------------------------------------

    def _final(self, task: Task, binding: Binding) -> Work:
        s, on = sum(binding.samples), self._processor(task)
        return Work({on.memory: 2 * s * on.devices * self.model.hidden * on.item}, s)

    def _logits(self, task: Task, binding: Binding) -> Work:
        on, page = self._processor(task), self._page(task)
        elements = page.matrix_elements
        columns = elements / self.model.hidden
        row_bytes = (on.devices * self.model.hidden + columns) * on.item
        s = sum(binding.samples)
        found = _matmul(on, s, elements, page.matrix_bytes, row_bytes)
        return found._replace(exchanged=on.gathered(s * columns))

    # -- host work -----------------------------------------------------------------------

    def _bind(self, task: Task, binding: Binding) -> Work:
        sequences = sum(map(len, binding.extents))
        return Work({SEQUENCES: sequences}, sequences)

    def _sample(self, task: Task, binding: Binding) -> Work:
        """Scores are searched where they are; on an accelerator, the host's part comes later."""
        s, on = sum(binding.samples), self._processor(task)
        drawn = {} if task.lane == GPU else {HOST: s}
        return Work({**drawn, on.memory: s * self.model.vocab * on.item}, s)

    def _commit(self, task: Task, binding: Binding) -> Work:
        s = sum(binding.samples)
        drawn = {HOST: s} if self.policy.on_device else {}
        return Work({**drawn, TOKENS: s}, s)

    # ------------------------------------------------------------------------------------

    def _processor(self, task: Task) -> _Processor:
        return self._on_gpu if task.lane == GPU else _ON_CPU

    def _page(self, task: Task) -> Page:
        assert task.page is not None, f"{task.label} has no page"
        return self._kinds.pages_by_id[task.page]


class _Same(NamedTuple):
    """Expert pages of a layer that cost the same for as many rows."""

    pages: tuple[Page, ...]
    ids: frozenset[int]


class _Processor(NamedTuple):
    """The roofs that arithmetic draws on, bytes per activation, and how many devices there are,
    each with rows of its own."""

    flops: str
    memory: str
    item: int
    devices: int

    def summed(self, elements: float) -> float:
        """Bytes that an all-reduce of ``elements`` sends, all devices together."""
        return 2 * (self.devices - 1) * elements * self.item

    def gathered(self, elements: float) -> float:
        """Bytes sent to bring ``elements``, of which each device has a share, to one of them."""
        return (self.devices - 1) / self.devices * elements * self.item


_ON_CPU = _Processor(CPU_FLOPS, DRAM, 4, 1)


def _latent_flops(mla: Mla, heads: int, rows: int, pairs: int, tokens: int) -> int:
    """Attention in the latent space, or over keys and values expanded from it, whichever is
    less; the rows' own are expanded in either case (see above)."""
    absorbed = 2 * heads * pairs * (mla.cached + mla.kv_rank)
    others = max(0, tokens - rows)
    expanding = 2 * heads * others * mla.kv_rank * (mla.nope_dim + mla.v_dim)
    return min(absorbed, 2 * heads * pairs * (mla.qk_dim + mla.v_dim) + expanding)


_NOTHING = Work({}, 0)


def _matmul(on: _Processor, rows: int, elements: float, stored: float, row_bytes: float) -> Work:
    """``rows`` rows times a matrix of ``elements`` in ``stored`` bytes, moving ``row_bytes`` per
    row beside it."""
    if not rows:
        return _NOTHING
    return Work({on.flops: 2 * rows * elements, on.memory: stored + rows * row_bytes}, rows)


def _mean_bytes(page: Page) -> float:
    """Bytes of a weight of a layer's projections, as stored; the router is not one."""
    held = [s for s in page.slices if s.columns and s.tensor not in ("router", "shared_gate")]
    return sum(s.nbytes for s in held) / sum(s.elements for s in held)


def _nothing(task: Task, binding: Binding) -> Work:
    return _NOTHING


def _disk(lane: str, moved: float, rows: float) -> Work:
    """A read goes over the disk, the lane's request in flight, and into memory."""
    return Work({DISK: moved, LANE + lane: moved, DRAM: moved}, rows)


def _mb_rows(task: Task, binding: Binding) -> int:
    return binding.mb_rows(task.mb or 0)
