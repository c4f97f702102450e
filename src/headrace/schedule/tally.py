"""How many tasks of each kind a sweep has, without making the list.

A list of tens of thousands of tasks has a few dozen kinds: pages of one size and use cost the
same in every layer of one kind. Counting them is what lets a planner price hundreds of policies;
the generators stay the definition, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from headrace.schedule.lanes import CPU, D2H, GPU, H2D, HOST, PACKETS, ROWS, STAGE, disk_lane
from headrace.schedule.task import Op, Task
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy


class Alike(NamedTuple):
    """Tasks that cost the same in any sweep: one of them (without its operands), how many."""

    task: Task
    count: int  # type: ignore[assignment]  # hides tuple.count


@dataclass(frozen=True)
class Kind:
    """Pages that are stored and used alike: one of them, and the ids of all."""

    page: Page
    ids: frozenset[int]
    by_all: bool  # every row visits it, if it is an expert's

    @property
    def total_bytes(self) -> int:
        """Bytes of all of them as stored."""
        return self.page.bytes * len(self.ids)


@dataclass(frozen=True)
class Kinds:
    """The pages of a model by kind. Made once, used for every policy."""

    model: ModelSpec
    pages: tuple[Page, ...]

    @cached_property
    def all(self) -> tuple[Kind, ...]:
        """Every kind, in order of first use."""
        found: dict[int, list[Page]] = {}
        for page, number in zip(self.pages, self._numbers, strict=True):
            found.setdefault(number, []).append(page)
        return tuple(
            Kind(same[0], frozenset([page.id for page in same]), self._by_all(same[0]))
            for same in found.values()
        )

    @cached_property
    def experts_of(self) -> Mapping[int, tuple[frozenset[int], ...]]:
        """Layer -> ids of its expert pages, by kind."""
        found: dict[int, dict[int, list[int]]] = {}
        for page, number in zip(self.pages, self._numbers, strict=True):
            if page.expert is not None and page.layer is not None:
                of_layer = found.get(page.layer)
                if of_layer is None:
                    of_layer = found[page.layer] = {}
                of_layer.setdefault(number, []).append(page.id)
        return {
            layer: tuple(frozenset(of_layer.get(n, ())) for n in range(len(self.all)))
            for layer, of_layer in found.items()
        }

    @cached_property
    def _numbers(self) -> list[int]:
        """The number of each page's kind."""
        known: dict[tuple[object, ...], int] = {}
        return [known.setdefault(self._key(page), len(known)) for page in self.pages]

    @cached_property
    def others(self) -> tuple[Page, ...]:
        """Pages that are not an expert's, one by one: there are few."""
        return tuple(page for page in self.pages if page.expert is None)

    @cached_property
    def pages_by_id(self) -> Mapping[int, Page]:
        """Every page."""
        return {page.id: page for page in self.pages}

    @cached_property
    def table(self) -> tuple[Kind, ...]:
        """Kinds of the embedding table (the head's, when tied)."""
        role = Role.HEAD if self.model.tied_embeddings else Role.EMBED
        return tuple(kind for kind in self.all if kind.page.role is role)

    def rows_read(self, policy: Policy) -> bool:
        """Whether embedding rows are read by row, for some of the table is not resident."""
        return any(not kind.ids <= policy.resident for kind in self.table)

    def streamed(self, policy: Policy) -> Iterator[tuple[Kind, frozenset[int]]]:
        """Kinds of which some pages stream, with those pages."""
        for kind in self.all:
            if kind.page.role in (Role.EMBED, Role.FINAL):
                continue
            ids = kind.ids - policy.resident
            if policy.cpu_experts:
                ids -= policy.cpu_experts
            if ids:
                yield kind, ids

    def _key(self, page: Page) -> tuple[object, ...]:
        layer = page.layer
        if layer is None:
            return (page.role, page.bytes)
        if page.expert is None:
            return (page.role, page.bytes, self.model.window_of(layer), self._routed[layer])
        routed = self._routed[layer]
        return (page.role, page.bytes, routed, not routed or page.expert >= self.model.experts)

    @cached_property
    def _routed(self) -> list[bool]:
        return [self.model.is_routed(layer) for layer in range(self.model.layers)]

    def _by_all(self, page: Page) -> bool:
        if page.layer is None or page.expert is None:
            return False
        return self.model.visited_by_all(page.layer, page.expert)


def tally(kinds: Kinds, policy: Policy) -> list[Alike]:
    """The tasks of one sweep under ``policy`` by kind; those of each micro-batch by themselves."""
    counted = _Tally(kinds, policy)
    parts = counted.on_device() if policy.on_device else counted.on_host()
    return [each for each in parts if each.count]


class _Tally:
    def __init__(self, kinds: Kinds, policy: Policy) -> None:
        self.kinds, self.policy, self.model = kinds, policy, kinds.model
        self.lane = GPU if policy.on_device else CPU
        self.parts = range(policy.micro_batches)

    # -- on a processor and its disk -------------------------------------------------------

    def on_host(self) -> Iterator[Alike]:
        yield from self._ends()
        for kind in self._layer_kinds():
            yield from self._layer(kind, (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.ROUTER))
        if self.policy.schedule == "resident":
            yield from self._moe((None,))
            return
        for number, (kind, ids) in enumerate(self.kinds.streamed(self.policy)):
            yield _of_page(Op.READ_PAGE, disk_lane(number % self.policy.disk_lanes), kind, len(ids))
        for kind in self.kinds.all:
            if kind.page.expert is not None:
                yield _of_page(_EXPERT_OPS[kind.page.role], CPU, kind, len(kind.ids))

    # -- beside an accelerator -------------------------------------------------------------

    def on_device(self) -> Iterator[Alike]:
        schedule = self.policy.schedule
        yield from self._ends()
        for kind in self._layer_kinds():
            yield from self._layer(kind, (Op.PRE_ATTN, Op.POST_ATTN, Op.ROUTER))
            yield from self._attend(kind)
        if schedule == "two_group":
            yield from self._expert_by_expert()
        else:
            yield from self._moe((None,) if schedule == "resident" else self.parts)
        yield from self._transfers()
        if schedule in ("flexgen", "flexgen_c"):
            yield Alike(Task(Op.BARRIER, HOST, (), ()), self.model.layers * len(self.parts))

    def _attend(self, kind: Kind) -> Iterator[Alike]:
        layer, count = kind.page.layer, len(kind.ids)
        at_home = self.policy.device_kv_parts
        for mb in self.parts:
            if self.policy.attention_on_device:
                ops = [(Op.ATTN, GPU)]
                if self.policy.schedule == "flexgen" and mb >= at_home:
                    ops += [(Op.LOAD_KV, H2D), (Op.STORE_KV, D2H)]
            else:
                ops = [(Op.ATTN, CPU), (Op.OFFLOAD_QKV, D2H), (Op.LOAD_HIDDEN, H2D)]
            yield from (Alike(Task(op, lane, (), (), layer, mb), count) for op, lane in ops)

    def _expert_by_expert(self) -> Iterator[Alike]:
        beside = self.policy.cpu_experts
        for kind in self.kinds.all:
            if kind.page.expert is not None:
                op, count = _EXPERT_OPS[kind.page.role], len(kind.ids - beside)
                yield from (_of_page(op, GPU, kind, count, mb) for mb in self.parts)
        yield from self._on_cpu()

    def _transfers(self) -> Iterator[Alike]:
        policy = self.policy
        lane = PACKETS if policy.schedule == "two_group" else H2D
        for number, (kind, ids) in enumerate(self.kinds.streamed(policy)):
            yield _of_page(Op.UPLOAD_PAGE, lane, kind, len(ids))
            read = len(ids & policy.on_disk)
            yield _of_page(Op.READ_PAGE, disk_lane(number % policy.disk_lanes), kind, read)
            if policy.pageable:
                yield _of_page(Op.STAGE_PAGE, STAGE, kind, len(ids) - read)

    # -- pieces of both --------------------------------------------------------------------

    def _ends(self) -> Iterator[Alike]:
        """From requests to hidden states, and from hidden states to tokens."""
        yield Alike(Task(Op.BIND, HOST, (), ()), 1)
        if self.kinds.rows_read(self.policy):
            yield Alike(Task(Op.READ_ROWS, ROWS, (), ()), 1)
            if self.policy.on_device:
                yield Alike(Task(Op.LOAD_ROWS, H2D, (), ()), 1)
        yield from (Alike(Task(Op.EMBED, self.lane, (), (), mb=mb), 1) for mb in self.parts)
        for kind in self.kinds.all:
            if kind.page.role in (Role.FINAL, Role.HEAD):
                op = Op.FINAL if kind.page.role is Role.FINAL else Op.LOGITS
                yield _of_page(op, self.lane, kind, len(kind.ids))
        yield Alike(Task(Op.SAMPLE, self.lane, (), ()), 1)
        yield Alike(Task(Op.COMMIT, HOST, (), ()), 1)

    def _layer_kinds(self) -> Iterable[Kind]:
        return (kind for kind in self.kinds.all if kind.page.role is Role.LAYER)

    def _layer(self, kind: Kind, ops: Iterable[Op]) -> Iterator[Alike]:
        routed = self.model.is_routed(kind.page.layer or 0)
        for op in ops:
            if op is not Op.ROUTER or routed:
                yield from (_of_page(op, self.lane, kind, len(kind.ids), mb) for mb in self.parts)

    def _moe(self, parts: Iterable[int | None]) -> Iterator[Alike]:
        """One task for the experts of a layer, or of a layer and micro-batch."""
        for layer, count in self._layers_alike(beside=False):
            for mb in parts:
                yield Alike(Task(Op.MOE, self.lane, (), (), layer, mb), count)
        yield from self._on_cpu()

    def _on_cpu(self) -> Iterator[Alike]:
        """Experts of the processor beside a device, and what crosses the link for them."""
        if not self.policy.cpu_experts:
            return
        ops = [(Op.OFFLOAD_HIDDEN, D2H), (Op.MOE, CPU), (Op.LOAD_PARTIAL, H2D), (Op.COMBINE, GPU)]
        for layer, count in self._layers_alike(beside=True):
            for op, lane in ops:
                for mb in self.parts:
                    yield Alike(Task(op, lane, (), (), layer, mb), count)

    def _layers_alike(self, *, beside: bool) -> list[tuple[int, int]]:
        """Layers whose experts are alike: (the first, how many), of those with some ``beside`` the
        device, or some on it."""
        chosen = self.policy.cpu_experts
        groups: dict[tuple[object, ...], tuple[int, int]] = {}
        for layer, of_layer in self.kinds.experts_of.items():
            theirs = tuple(len(ids & chosen) for ids in of_layer) if chosen else ()
            sizes = tuple(map(len, of_layer))
            if any(theirs) if beside else theirs != sizes:
                key = (self.model.is_routed(layer), sizes, theirs)
                first, count = groups.get(key, (layer, 0))
                groups[key] = (first, count + 1)
        return list(groups.values())


_EXPERT_OPS = {
    Role.EXPERT: Op.EXPERT,
    Role.EXPERT_UP: Op.EXPERT_UP,
    Role.EXPERT_DOWN: Op.EXPERT_DOWN,
}


def _of_page(op: Op, lane: str, kind: Kind, count: int, mb: int | None = None) -> Alike:
    page = kind.page
    return Alike(Task(op, lane, (), (), page.layer, mb, page.id, page.expert), count)
