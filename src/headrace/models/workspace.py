"""All buffers of a run as tensors over one arena."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.kv import KvCache
from headrace.kernels.reference import Routing
from headrace.memory.arena import Arena
from headrace.memory.kvcache import kv_tensors, tensor
from headrace.memory.pages import PageTable
from headrace.models.weights import Turn, TurnedPage, turned
from headrace.schedule.task import Buffer, Size
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import aligned

_View = Tensor | TurnedPage | Routing | KvCache

_PAGES = ("page", "slot")
_POISON = 0xFF  # NaN in every floating format, -1 in every integer


class Workspace:
    """Takes every sized buffer from ``arena`` and shows it as the tensor that bodies expect.

    ``sizes`` is ``schedule.sizes.buffer_sizes``. Pages and slots are uint8 (direct reads land
    there); the shapes of the others are in ``Buffer``. With ``turn`` (of the kernels that run)
    resident pages are turned as they are loaded, and shown as TurnedPage. Raises BudgetError when
    the arena is too small.
    """

    def __init__(
        self,
        model: ModelSpec,
        table: PageTable,
        policy: Policy,
        sizes: Mapping[Buffer, Size],
        arena: Arena,
        turn: Turn | None = None,
    ) -> None:
        self.model = model
        self.policy = policy
        self.table = table
        self._turn = turn
        self._memory: dict[Buffer, memoryview] = {}
        held = [b for b, size in sizes.items() if size.tier == arena.tier]
        for buffer in sorted(held, key=lambda b: b.name not in _PAGES):
            self._memory[buffer] = arena.take(str(buffer), sizes[buffer].bytes)
        self._views: dict[Buffer, _View] = {b: self._shaped(b, m) for b, m in self._memory.items()}

    def load_resident(self, on_page: Callable[[int], None] | None = None) -> int:
        """Read every resident page from disk; returns bytes read. ``on_page(bytes)`` each."""
        total = 0
        for buffer, memory in self._memory.items():
            if buffer.name == "page":
                moved = self.table.read(buffer.index, memory)
                self._views[buffer] = self._resident(buffer, memory)
                total += moved
                if on_page is not None:
                    on_page(moved)
        return total

    def exchange(self, out: int, into: int, slot: int = 0) -> int:
        """Give the memory of the resident page ``out`` to page ``into``, read from disk by way of a
        ``slot`` of the ring; returns bytes read. Both take as many bytes; nobody may use them or
        the slot meanwhile. When the read fails (StorageError), nothing has changed."""
        old, new = Buffer("page", out), Buffer("page", into)
        staged = self._memory[Buffer("slot", slot)]
        moved = self.table.read(into, staged)
        memory = self._memory.pop(old)
        size = self.table.slot_bytes(into)
        memory[:size] = staged[:size]
        del self._views[old]
        self._memory[new] = memory
        self._views[new] = self._resident(new, memory)
        return moved

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Everything taken from the arena, in its order."""
        return tuple(self._memory)

    def view(self, buffer: Buffer) -> Any:
        """The buffer's tensor, ``TurnedPage``, ``Routing`` or ``KvCache``; None for state that no
        arena holds."""
        return self._views.get(buffer)

    def poison(self, buffer: Buffer | None = None) -> None:
        """Overwrite ``buffer`` (all but the resident pages when None) with what no result can
        hide: NaN in floating formats, -1 in integers."""
        doomed = [b for b in self._memory if b.name != "page"] if buffer is None else [buffer]
        for each in doomed:
            if len(self._memory.get(each, b"")):
                torch.frombuffer(self._memory[each], dtype=torch.uint8).fill_(_POISON)

    def _resident(self, buffer: Buffer, memory: memoryview) -> Tensor | TurnedPage:
        """A page that was just read."""
        view = tensor(memory, "u8", (len(memory),))
        if self._turn is None:
            return view
        return turned(self.table, buffer.index, view, self._turn)

    def _shaped(self, buffer: Buffer, memory: memoryview) -> Tensor | Routing | KvCache:
        if buffer.name == "kv":
            return KvCache(*kv_tensors(memory, self.model, self.policy))
        if buffer.name == "routing":
            return _routing(memory, self.policy.mu, self.model)
        if buffer.name == "rows":
            shape = (self.policy.max_rows, self.model.hidden)
            return tensor(memory, self.table.row_dtype(), shape)
        if buffer.name in (*_PAGES, "scratch"):
            return tensor(memory, "u8", (len(memory),))
        return tensor(memory, "f32", self._activation_shapes()[buffer.name])

    def _activation_shapes(self) -> dict[str, tuple[int, int]]:
        model, policy = self.model, self.policy
        return {
            "hidden": (policy.mu, model.hidden),
            "normed": (policy.mu, model.hidden),
            "q": (policy.mu, model.q_size),
            "attended": (policy.mu, model.q_size),
            "inter": (policy.max_rows, model.ffn_width),
            "final": (policy.max_seqs, model.hidden),
            "logits": (policy.max_seqs, model.vocab),
        }


def _routing(memory: memoryview, mu: int, model: ModelSpec) -> Routing:
    """Five tensors one behind the other, as ``specs.scratch.routing_bytes`` counts them."""
    k = model.top_k
    pieces = (
        ("i32", (mu, k)),
        ("f32", (mu, k)),
        ("i32", (mu * k,)),
        ("f32", (mu * k,)),
        ("i64", (model.experts + 1,)),
    )
    offset, parts = 0, []
    for dtype, shape in pieces:
        parts.append(tensor(memory, dtype, shape, offset))
        offset += aligned(math.prod(shape) * (8 if dtype == "i64" else 4))
    return Routing(*parts)
