"""What each task costs: a vector of FLOPs and bytes over roofs, from the sweep's binding.

The virtual machine predicts with these amounts and reports measure against them; there is no
second set of formulas. D hidden, Q = H d, KV = kv_heads d, E experts, k top_k, V vocab; m rows of
a micro-batch, r rows of an expert, s rows to sample. A product [m, a] x [a, b] is 2 m a b FLOPs;
bytes are weights once per task, plus activations (f32) in and out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from headrace.errors import UsageError
from headrace.schedule.binding import Binding
from headrace.schedule.task import Op, Schedule, Task
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST, Hardware
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

LANE = "lane:"
"""Prefix of the private roof of a disk lane: a request in flight reaches only so much."""

BLOCK = 4096
"""Direct reads move whole blocks of this many bytes."""

_F32 = 4


class Work(NamedTuple):
    """Amounts per roof (FLOPs, bytes; for the ``host`` roof, rows), and the rows that decide
    how close to its roofs the task gets."""

    amounts: Mapping[str, float]
    rows: float

    def seconds(self, hardware: Hardware, efficiency: float = 1.0) -> dict[str, float]:
        """Roof -> seconds the amounts take on it alone. Raises UsageError for a roof unknown."""
        return {
            roof: amount / _rate(hardware, roof) / efficiency
            for roof, amount in self.amounts.items()
            if amount
        }


class WorkModel:
    """The work of every task of a model's schedules under one policy."""

    def __init__(self, model: ModelSpec, pages: tuple[Page, ...], policy: Policy) -> None:
        self.model = model
        self.policy = policy
        self._pages = {page.id: page for page in pages}
        self._matrices = {  # elements that rows are multiplied with
            page.id: sum(s.elements for s in page.slices if s.columns) for page in pages
        }
        self._experts = {
            layer: [p for p in pages if p.layer == layer and p.expert is not None]
            for layer in range(model.layers)
        }
        self._item = ITEM_BYTES[model.weight_dtype]
        self._formulas: dict[Op, Callable[[Task, Binding], Work]] = {
            Op.BIND: _nothing,
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
            Op.COMMIT: _nothing,
        }

    def work(self, task: Task, binding: Binding) -> Work:
        """What ``task`` costs in a sweep of ``binding``; a task without rows costs nothing."""
        return self._formulas[task.op](task, binding)

    def sweep_work(self, schedule: Schedule, binding: Binding) -> dict[str, float]:
        """Roof -> amount of the whole sweep."""
        totals: dict[str, float] = {}
        for task in schedule.tasks:
            for roof, amount in self.work(task, binding).amounts.items():
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

    # -- reads ---------------------------------------------------------------------------

    def _read_rows(self, task: Task, binding: Binding) -> Work:
        moved = binding.row_bytes
        if moved is None:
            row = self.model.hidden * self._item
            moved = binding.rows * (math.ceil((row - 1) / BLOCK) + 1) * BLOCK
        return _disk(task.lane, moved, binding.rows)

    def _read_page(self, task: Task, binding: Binding) -> Work:
        page = self._page(task)
        moved: float | None = binding.page_bytes.get(page.id)
        if moved is None:
            chance = 1.0
            if self.policy.schedule == "on_demand" and page.expert is not None:
                chance = self._chance(binding, page)
            moved = page.bytes * chance
        return _disk(task.lane, moved, binding.rows)

    # -- attention -----------------------------------------------------------------------

    def _embed(self, task: Task, binding: Binding) -> Work:
        m = _mb_rows(task, binding)
        return Work({DRAM: m * self.model.hidden * (self._item + _F32)}, m)

    def _pre_attn(self, task: Task, binding: Binding) -> Work:
        D, Q, KV = self.model.hidden, self.model.q_size, self.model.kv_size
        written = Q * _F32 + self.model.kv_layer_bytes(self.policy.kv_dtype)
        return self._matmul(_mb_rows(task, binding), D * (Q + 2 * KV), D * _F32 + written)

    def _attn(self, task: Task, binding: Binding) -> Work:
        """QK and PV of every row over the tokens it sees; each sequence's KV is read once."""
        m = _mb_rows(task, binding)
        seen = binding.attention(task.mb or 0, self.model.sliding_window)
        kv_bytes = seen.tokens * self.model.kv_layer_bytes(self.policy.kv_dtype)
        activations = 2 * m * self.model.q_size * _F32
        amounts = {CPU_FLOPS: 4 * seen.pairs * self.model.q_size, DRAM: kv_bytes + activations}
        return Work(amounts, m)

    def _post_attn(self, task: Task, binding: Binding) -> Work:
        D, Q = self.model.hidden, self.model.q_size
        return self._matmul(_mb_rows(task, binding), Q * D, (Q + 3 * D) * _F32)

    # -- experts -------------------------------------------------------------------------

    def _router(self, task: Task, binding: Binding) -> Work:
        D, E, k = self.model.hidden, self.model.experts, self.model.top_k
        return self._matmul(_mb_rows(task, binding), D * E, (D + 2 * k) * _F32)

    def _expert(self, task: Task, binding: Binding) -> Work:
        return self._expert_page(binding, self._page(task))

    def _moe(self, task: Task, binding: Binding) -> Work:
        parts = [self._expert_page(binding, p) for p in self._experts[task.layer or 0]]
        totals = {
            roof: sum(part.amounts.get(roof, 0.0) for part in parts) for roof in (CPU_FLOPS, DRAM)
        }
        return Work(totals, binding.rows * self.model.top_k / self.model.experts)

    def _expert_page(self, binding: Binding, page: Page) -> Work:
        """Rows gathered, multiplied with the page, added back; weights read if anyone came."""
        r = binding.expert_rows(self.model, page.layer or 0, page.expert or 0)
        weights = self._matrices[page.id] * self._item * self._chance(binding, page)
        activations = r * 3 * self.model.hidden * _F32
        return Work({CPU_FLOPS: 2 * r * self._matrices[page.id], DRAM: weights + activations}, r)

    def _chance(self, binding: Binding, page: Page) -> float:
        """Chance that an expert gets any row; of a count, whether it did."""
        layer, expert = page.layer or 0, page.expert or 0
        if layer in binding.routed:
            return min(1.0, binding.routed[layer][expert])
        return 1.0 - (1.0 - self.model.top_k / self.model.experts) ** binding.rows

    # -- head ----------------------------------------------------------------------------

    def _final(self, task: Task, binding: Binding) -> Work:
        s = sum(binding.samples)
        return Work({DRAM: 2 * s * self.model.hidden * _F32}, s)

    def _logits(self, task: Task, binding: Binding) -> Work:
        page = self._page(task)
        elements = self._matrices[page.id]
        columns = elements / self.model.hidden
        return self._matmul(sum(binding.samples), elements, (self.model.hidden + columns) * _F32)

    def _sample(self, task: Task, binding: Binding) -> Work:
        s = sum(binding.samples)
        return Work({HOST: s, DRAM: s * self.model.vocab * _F32}, s)

    # ------------------------------------------------------------------------------------

    def _matmul(self, rows: int, elements: float, row_bytes: float) -> Work:
        """``rows`` rows times a matrix of ``elements``, moving ``row_bytes`` per row beside it."""
        if not rows:
            return _NOTHING
        moved = elements * self._item + rows * row_bytes
        return Work({CPU_FLOPS: 2 * rows * elements, DRAM: moved}, rows)

    def _page(self, task: Task) -> Page:
        assert task.page is not None, f"{task.label} has no page"
        return self._pages[task.page]


_NOTHING = Work({}, 0)


def _nothing(task: Task, binding: Binding) -> Work:
    return _NOTHING


def _disk(lane: str, moved: float, rows: float) -> Work:
    """A read goes over the disk, the lane's request in flight, and into memory."""
    return Work({DISK: moved, LANE + lane: moved, DRAM: moved}, rows)


def _mb_rows(task: Task, binding: Binding) -> int:
    return binding.mb_rows(task.mb or 0)


def _rate(hardware: Hardware, roof: str) -> float:
    if roof == HOST:
        return 1.0 / hardware.row_seconds if hardware.row_seconds else math.inf
    if roof.startswith(LANE):
        return hardware.lane_rate
    rate = hardware.roofs.get(roof)
    if not rate:
        raise UsageError(
            f"{hardware.name} has no rate for the roof {roof}",
            expected=f"one of {', '.join(hardware.roofs) or 'none given'}",
            hint="calibrate this machine, or add the rate to its description",
        )
    return rate
