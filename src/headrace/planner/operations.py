"""Operations of one layer as points on a roofline, counted by the work model.

N rows of a sweep in micro-batches of mu: weights cross the link once per sweep, an accelerator's
memory is read once per micro-batch. Attention is of decodes over ``context`` tokens, and of one
prompt of that length.
"""

from __future__ import annotations

from dataclasses import replace

from headrace.errors import UsageError
from headrace.planner.roofline import Operation
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.lanes import CPU, GPU
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import CPU_FLOPS, DRAM, GPU_FLOPS, HBM
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role, page_layout
from headrace.specs.policy import Policy

_FLOPS = {CPU: CPU_FLOPS, GPU: GPU_FLOPS}
_MEMORY = {CPU: DRAM, GPU: HBM}


def layer_operations(
    model: ModelSpec, batch: int, mu: int, context: int, kv_dtype: str = "f16"
) -> tuple[Operation, ...]:
    """Attention of decodes and of a prompt, projections and experts of the last layer.

    Bytes at ``device`` (or, for attention in place, ``host``) are what a kernel reads and writes;
    at ``host`` and ``disk`` what leaves home: weights, or KV, once.
    """
    if not 1 <= mu <= batch:
        raise UsageError("micro-batch", expected=f"1 to {batch}", got=mu)
    return _Layer(model, batch, mu, context, kv_dtype).operations()


class _Layer:
    def __init__(self, model: ModelSpec, batch: int, mu: int, context: int, kv: str) -> None:
        self.layer = model.layers - 1
        self.parts = -(-batch // mu)
        policy = Policy(
            "cgopipe",
            max_rows=batch,
            max_seqs=batch,
            micro_batches=self.parts,
            kv_dtype=kv,
            compute="device",
        )
        self.pages = [p for p in page_layout(model) if p.layer == self.layer]
        self.work = WorkModel(model, page_layout(model), policy)
        self.prompt = WorkModel(model, page_layout(model), replace(policy, micro_batches=1))
        sizes = [batch // self.parts + (i < batch % self.parts) for i in range(self.parts)]
        self.decodes = Binding(tuple((Extent(1, context),) * n for n in sizes))
        self.prefill = Binding(((Extent(context, context),),))

    def operations(self) -> tuple[Operation, ...]:
        experts = [p for p in self.pages if p.expert is not None]
        return (
            self._attention("attention, decode", self.work, self.decodes),
            self._attention("attention, prompt", self.prompt, self.prefill),
            self._products("projections", (Op.PRE_ATTN, Op.POST_ATTN), self._of(Role.LAYER)),
            self._products("experts", (Op.MOE,), experts),
        )

    def _attention(self, name: str, work: WorkModel, binding: Binding) -> Operation:
        """KV at home is what is read in place; on an accelerator the same bytes, and rows."""
        flops, touched = self._sum(work, binding, (Op.ATTN,), CPU)
        return Operation(name, flops, {"disk": touched, "host": touched, "device": touched})

    def _products(self, name: str, ops: tuple[Op, ...], pages: list[Page]) -> Operation:
        flops, touched = self._sum(self.work, self.decodes, ops, GPU)
        home = float(sum(page.bytes for page in pages))
        return Operation(name, flops, {"disk": home, "host": home, "device": touched})

    def _sum(
        self, work: WorkModel, binding: Binding, ops: tuple[Op, ...], lane: str
    ) -> tuple[float, float]:
        page = self._of(Role.LAYER)[0].id
        amounts = [
            work.work(Task(op, lane, (), (), self.layer, mb, page), binding).amounts
            for op in ops
            for mb in range(len(binding.extents))
        ]
        return tuple(  # type: ignore[return-value]  # two of them
            sum(a.get(roof, 0.0) for a in amounts) for roof in (_FLOPS[lane], _MEMORY[lane])
        )

    def _of(self, role: Role) -> list[Page]:
        return [page for page in self.pages if page.role is role]
