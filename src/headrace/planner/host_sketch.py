"""A steady sweep on a processor and its disk, played in small.

Layers are alike and so are pages: a list of a few layers, pages in groups, made by the same
generators, shows how well reads hide behind arithmetic. What its tasks cost is the model's own
work, spread evenly, so a play takes milliseconds for a model of any size.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from headrace.machines.replay import Cost, Score
from headrace.planner.bindings import binding_of
from headrace.planner.sweeps import Load, as_run
from headrace.schedule.generate import list_tasks, next_phase
from headrace.schedule.tally import Kinds, tally
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import LANE, alone
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy

_LEAST_LAYERS, _MOST_LAYERS = 4, 12
_LEAST_GROUPS, _MOST_GROUPS = 8, 48  # of pages that stream, per layer
_HELD, _HEAD = 2, 4  # groups of expert pages that stay, per layer; of pages of the head
_SWEEPS = 3  # the one in the middle is steady: reads of the next run in its tail
_FIXED = "fixed"
_EXPERT_OPS = (Op.EXPERT, Op.EXPERT_UP, Op.EXPERT_DOWN)


class _Streams(NamedTuple):
    """Streamed pages of each use, and the share of expert bytes that streams."""

    layer: int
    experts: int
    head: int
    share: float


class _Key(NamedTuple):
    """Tasks that cost the same: op, role of the page that is read, micro-batch."""

    op: Op
    role: Role | None = None
    mb: int | None = None


class _Kind(NamedTuple):
    """Tasks of a sketch that cost the same: ``share`` of the whole sweep's total, each."""

    key: _Key
    lane: str
    share: float


@dataclass
class HostSketch:
    """The sketch of one policy, without an accelerator; ``play`` it at any load."""

    kinds: Kinds
    policy: Policy
    hardware: Hardware

    def __post_init__(self) -> None:
        self.hardware = as_run(self.hardware, self.policy.schedule)
        kinds = self.kinds
        self._work = WorkModel(kinds.model, kinds.pages, self.policy, kinds=kinds)
        self._tally = tally(self.kinds, self.policy)
        # One at a time, tasks add up; and a layer of a sketch has not its share of the reads, which
        # lie among the tasks of layers before it.
        self._adds_up = self.policy.schedule == "one_by_one"
        if not self._adds_up:
            self._streams = _streams(self.kinds, self.policy)
            self._draw()
            self._list()

    def _list(self) -> None:
        """Sweeps of what is drawn, to be played."""
        lists, phase = [], 0
        for _ in range(_SWEEPS):
            lists.append(list_tasks(self._model, self._pages, self._small, phase))
            phase = next_phase(self._pages, self._small, phase)
        self._score = Score(lists, self._kind)
        self._layers_of_second = [
            (place, task.layer)
            for place, task in enumerate(self._score.tasks)
            if self._score.lasts[0] <= place < self._score.lasts[1]
            and task.layer is not None
            and task.op is not Op.READ_PAGE
        ]

    def play(self, load: Load) -> float:
        """Seconds of a steady sweep of ``load``, in the whole model."""
        totals = self._totals(load)
        if self._adds_up:
            return sum(self._seconds(roofs) for roofs in totals.values())
        costs: dict[Hashable, Cost] = {}
        for kind in self._score.kinds:
            assert isinstance(kind, _Kind)
            costs[kind] = self._cost(kind, totals)
        ends = self._score.play(costs, 2)
        one, two = self._score.lasts[:2]
        layers: dict[int, float] = {}
        for place, layer in self._layers_of_second:
            layers[layer] = max(ends[place], layers.get(layer, 0.0))
        return max(ends[one:two]) - max(ends[:one]) + self._beyond(layers)

    def _beyond(self, ends: Mapping[int, float]) -> float:
        """The layers that are not drawn take as long as the later ones that are."""
        drawn = self._model.layers
        first, last = drawn // 2 - 1, drawn - 2
        if self.kinds.model.layers == drawn:
            return 0.0
        return (self.kinds.model.layers - drawn) * (ends[last] - ends[first]) / (last - first)

    # -- what is drawn -----------------------------------------------------------------------

    def _draw(self) -> None:
        model, policy, streams = self.kinds.model, self.policy, self._streams
        per_layer = (streams.experts + streams.layer) / model.layers
        depth = policy.ring_slots / per_layer if per_layer else 0.0
        self._groups = _groups(streams.experts / model.layers, policy.ring_slots)
        own, head = min(1, streams.layer), min(_HEAD, streams.head)
        self._held = _HELD if streams.share < 1.0 else 0
        layers = min(model.layers, max(_LEAST_LAYERS, min(_MOST_LAYERS, math.ceil(2 * depth) + 4)))
        pages, held = self._draw_pages(layers, own, head)
        routed = model.is_moe
        self._model = ModelSpec(
            "sketch", layers, 1, 1, 1, 1, 1, 1, experts=1 + routed * (self._groups + self._held)
        )  # fmt: skip
        self._pages = tuple(pages)
        slots = max(round(depth * (self._groups + own)), 2 if streams.experts else 0)
        read_rows = self.kinds.rows_read(policy)
        self._small = replace(
            policy,
            resident=frozenset(held | ({0} if not read_rows else set())),
            ring_slots=slots or min(policy.ring_slots, 3),
            slot_bytes=1,
            kv_blocks=1,
        )

    def _draw_pages(self, layers: int, own: int, head: int) -> tuple[list[Page], set[int]]:
        pages = [Page(0, Role.EMBED, (), 1)]
        held: set[int] = set()

        def add(role: Role, stays: bool, layer: int | None = None, part: int = 0) -> None:
            expert = part if role is Role.EXPERT else None
            if stays:
                held.add(len(pages))
            pages.append(Page(len(pages), role, (), 1, layer, expert, part))

        for layer in range(layers):
            add(Role.LAYER, not own, layer)
            for number, stays in enumerate(_mixed(self._groups, self._held)):
                add(Role.EXPERT, stays, layer, number)
        add(Role.FINAL, True)
        for part in range(max(1, head)):
            add(Role.HEAD, not head, part=part)
        self._heads = max(1, head)
        return pages, held

    # -- what it costs -----------------------------------------------------------------------

    def _totals(self, load: Load) -> Mapping[_Key, Mapping[str, float]]:
        """Seconds of each kind of task in a whole sweep, by roof, and what they take anyway."""
        binding = binding_of(load, self.policy)
        found: dict[_Key, dict[str, float]] = {}
        for task, count in self._tally:
            work = self._work.work(task, binding)
            each = alone(work, self.hardware, task.op.value)
            fixed = self.hardware.fixed_seconds_of(task.op.value, work.chance)
            fixed += each.seconds - max(each.roofs.values(), default=0.0)  # roofs in turn
            totals = found.setdefault(self._key(task), {_FIXED: 0.0})
            totals[_FIXED] += count * fixed
            for roof, seconds in each.roofs.items():
                roof = LANE if roof.startswith(LANE) else roof
                totals[roof] = totals.get(roof, 0.0) + count * seconds
        return found

    def _key(self, task: Task) -> _Key:
        if task.op in _EXPERT_OPS:
            return _Key(Op.EXPERT)
        if task.op is Op.READ_PAGE:
            role = Role.EXPERT if task.expert is not None else Role.LAYER
            return _Key(task.op, Role.HEAD if task.layer is None else role)
        return _Key(task.op, None, task.mb)

    def _kind(self, task: Task) -> _Kind:
        return _Kind(self._key(task), task.lane, self._share(task))

    def _cost(self, kind: _Kind, totals: Mapping[_Key, Mapping[str, float]]) -> Cost:
        """Of one task of the sketch. A lane of the disk is a roof that nobody shares."""
        total = totals.get(kind.key, {})
        roofs = {roof: seconds * kind.share for roof, seconds in total.items()}
        seconds = self._seconds(roofs)
        roofs.pop(_FIXED, None)
        if LANE in roofs:
            roofs[LANE + kind.lane] = roofs.pop(LANE)
        return Cost(seconds, roofs)

    def _seconds(self, roofs: Mapping[str, float]) -> float:
        """Seconds of tasks that take these, one after the other."""
        busy = max((seconds for roof, seconds in roofs.items() if roof != _FIXED), default=0.0)
        return busy + roofs.get(_FIXED, 0.0)

    def _share(self, task: Task) -> float:
        """Of the whole sweep's total of its kind."""
        if task.layer is None:
            return 1 / self._heads if task.op in (Op.LOGITS, Op.READ_PAGE) else 1.0
        layers = self.kinds.model.layers
        if task.op not in (Op.EXPERT, Op.READ_PAGE) or task.expert is None:
            return 1 / layers
        if task.op is Op.READ_PAGE:
            return 1 / (layers * self._groups)
        if task.page in self._small.resident:
            return (1 - self._streams.share) / (layers * self._held)
        return self._streams.share / (layers * self._groups)


def _streams(kinds: Kinds, policy: Policy) -> _Streams:
    layer = experts = head = 0
    moved = 0
    for kind, ids in kinds.streamed(policy):
        if kind.page.expert is not None:
            experts += len(ids)
            moved += kind.page.bytes * len(ids)
        elif kind.page.layer is not None:
            layer += len(ids)
        else:
            head += len(ids)
    total = sum(kind.total_bytes for kind in kinds.all if kind.page.expert is not None)
    return _Streams(layer, experts, head, moved / total)


def _groups(pages: float, slots: int) -> int:
    """Groups of a layer's streamed pages: a ring of few pages must still be a ring of groups."""
    if not pages:
        return 0
    fine = math.ceil(4 * pages / max(1, slots))
    return max(1, min(round(pages), max(_LEAST_GROUPS, min(_MOST_GROUPS, fine))))


def _mixed(streamed: int, held: int) -> list[bool]:
    """Whether each group stays: those that do are spread evenly."""
    places = [((i + 0.5) / streamed, False) for i in range(streamed)]
    places += [((i + 0.5) / held, True) for i in range(held)]
    return [stays for _, stays in sorted(places)]
