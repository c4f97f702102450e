"""The schedule of a policy in small: a few layers, alike pages in groups, fewer micro-batches.

What a sweep's list looks like depends on a model's size only in how often things repeat. A sketch
keeps one example of each pattern, made by the same generators, so that it can be played in
milliseconds; ``costs`` says what its tasks take, so that totals are those of the whole model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from headrace.machines.replay import Score
from headrace.planner.census import Census, Weights, turn_of
from headrace.schedule.generate import list_tasks, next_phase
from headrace.schedule.lanes import H2D, PACKETS
from headrace.schedule.task import Op, Task
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy

LAYERS = (8, 10)
"""Layers of the two sketches that a deeper model is extended from. The first layers still feel
the seam behind the sweep before; an even number more, and a ring of two layers stands alike."""

PARTS = (32, 64)
"""Micro-batches of the sketches that a policy with more is extended from."""

SWEEPS = 3
"""Appended sweeps. The one in the middle is steady: its tail has the next one's uploads in it."""

LANE_KINDS = {"disk": "disk", H2D: "link", PACKETS: "link"}
"""Lanes that are one resource: requests in flight to a disk, both queues of uploads."""

_FINE = 8  # groups of pages where experts start as theirs arrive
_STAGED = 48  # where pages pass a few slots on their way
_HEAD_GROUPS = 4


class Kind(NamedTuple):
    """Tasks that cost the same: their op, their lane as in LANE_KINDS, their weights, and the turn
    of their layer (``census.turn_of``; None outside the layers)."""

    op: Op
    lane: str
    weights: Weights | None = None
    turn: int | None = None


@dataclass(frozen=True)
class Shape:
    """All that a sketch depends on; equal shapes have equal schedules. Layers repeat with
    ``period``, but for the first, which has groups (at home in memory, on disk) of its own.

    ``groups`` of streamed expert pages per layer at home in memory, ``read`` of those on disk;
    ``layer`` and ``head``: groups of streamed pages of those kinds. ``on_disk`` names what is read
    from disk. ``ring`` and ``stage`` count slots of groups.
    """

    schedule: str
    layers: int
    period: int
    parts: int
    routed: bool
    groups: int
    read: int
    first: tuple[int, int]
    layer: int
    head: int
    held: bool
    beside: bool
    table_held: bool
    pageable: bool
    on_disk: frozenset[Weights]
    kv_parts: int
    ring: int
    stage: int
    disk_lanes: int


class Sketch:
    """``SWEEPS`` appended schedules of one shape, ready to be played."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        small = _small(shape)
        lists = _appended(small)
        self.tasks = lists[0]
        stands = small.stands

        def kind_of(task: Task) -> Kind:
            lane = LANE_KINDS.get(task.lane.rstrip("0123456789"), task.lane)
            weights = None if task.page is None else stands[task.page]
            turn = None if task.layer is None else turn_of(task.layer, shape.period)
            return Kind(task.op, lane, weights, turn)

        depth = -(-shape.ring // max(1, shape.groups + shape.read + shape.layer))
        begun = (i for i, task in enumerate(self.tasks) if (task.layer or 0) > depth)
        self.score = Score(lists, kind_of, next(begun, len(self.tasks)))
        kinds = list(map(kind_of, self.tasks))
        self.counts = Counter(kinds)
        self._example = dict(zip(kinds, self.tasks, strict=True))

    def share(self, kind: Kind, layers: int, parts: int) -> float:
        """Share of a full sweep's total of ``kind`` that one task of it takes."""
        task, share, shape = self._example[kind], 1.0 / self.counts[kind], self.shape
        step = task.op is Op.BARRIER
        if step:
            share *= shape.layers / layers
        if kind.turn is not None:
            share *= _turns(shape.layers, kind.turn, shape.period)
            share /= _turns(layers, kind.turn, shape.period)
        moved = kind.turn is not None and task.op in _MOVES
        if task.mb is not None or moved or step:
            share *= shape.parts / parts
        return share


_MOVES = (Op.READ_PAGE, Op.STAGE_PAGE, Op.UPLOAD_PAGE)


def _turns(layers: int, turn: int, period: int) -> int:
    """How many of ``layers`` have this turn."""
    return sum(turn_of(layer, period) == turn for layer in range(layers))


def shape_of(census: Census, policy: Policy, layers: int, parts: int) -> Shape:
    """The sketch of ``policy``, which computes on the device: ``layers``, ``parts`` micro-batches.
    ``census`` is that of the model's pages under the same policy."""
    model = census.model
    pinned, read = _each(census, Weights.EXPERTS), _each(census, Weights.ON_DISK)
    own, head = census.streamed(Weights.LAYER), census.streamed(Weights.HEAD)
    groups = _groups(policy, parts, pinned.others, staged=policy.pageable)
    slow = _groups(policy, parts, read.others, staged=True)
    first = _like(pinned, groups), _like(read, slow)
    drawn, each = groups + slow + bool(own), pinned.others + read.others + bool(own)
    most, head_groups = max(drawn, sum(first) + bool(own)), min(_HEAD_GROUPS, head)
    depth = min(policy.ring_slots / each, layers) if each else 2
    slots = pinned.others + read.others if policy.pageable else read.others
    table = Weights.HEAD if model.tied_embeddings else Weights.TABLE
    return Shape(
        schedule=policy.schedule,
        layers=layers,
        period=census.period,
        parts=parts,
        routed=model.is_moe or census.count(Weights.BESIDE) > 0,
        groups=groups,
        read=slow,
        first=first,
        layer=int(bool(own)),
        head=head_groups,
        held=census.count(Weights.HELD) > 0,
        beside=census.count(Weights.BESIDE) > 0,
        table_held=census.all_resident(table),
        pageable=policy.pageable,
        on_disk=frozenset(w for w in Weights if census.any_on_disk(w)),
        kv_parts=round(policy.device_kv_parts * parts / policy.micro_batches),
        ring=max(drawn + most, round(depth * drawn), most + head_groups),
        stage=_stage_slots(policy, slots, slow + groups * policy.pageable),
        disk_lanes=policy.disk_lanes,
    )


def _groups(policy: Policy, parts: int, pages: float, *, staged: bool) -> int:
    """A micro-batch's share of uploads crosses the link in one go; where experts start as their
    pages arrive, or pages pass a small buffer on their way, finer groups tell. Fewer micro-batches
    have fewer pages between them, not smaller ones."""
    if not pages:
        return 0
    fine = {"two_group": _FINE, "cgopipe": parts, "one_by_one": parts}
    least = _STAGED if staged else 2
    here = max(1, round(pages * parts / policy.micro_batches))
    return min(here, max(least, fine.get(policy.schedule, 2)))


class _Each(NamedTuple):
    """Streamed pages of the first layer, and of any other on average."""

    first: int
    others: float


def _each(census: Census, weights: Weights) -> _Each:
    first, others = census.count(weights, turn=0), max(1, census.model.layers - 1)
    return _Each(first, (census.count(weights) - first) / others)


def _like(pages: _Each, groups: int) -> int:
    """Groups of the first layer's pages, if the others' make ``groups``."""
    share = pages.first / pages.others if pages.others else 1.0
    return max(1, round(share * groups)) if pages.first else 0


def _stage_slots(policy: Policy, each: float, drawn: int) -> int:
    """As many groups as hold the same share of a layer, but no pipeline becomes a single slot."""
    if not policy.stage_slots or not each:
        return policy.stage_slots
    return max(min(policy.stage_slots, 2), round(policy.stage_slots * drawn / each))


def _appended(small: _Small) -> list[tuple[Task, ...]]:
    """The lists of ``SWEEPS`` sweeps; where the ring stands as before, they are the same."""
    by_phase: dict[int, tuple[Task, ...]] = {}
    lists, phase = [], 0
    for _ in range(SWEEPS):
        if phase not in by_phase:
            by_phase[phase] = list_tasks(small.model, small.pages, small.policy, phase)
        lists.append(by_phase[phase])
        phase = next_phase(small.pages, small.policy, phase)
    return lists


class _Small(NamedTuple):
    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    stands: dict[int, Weights]


def _small(shape: Shape) -> _Small:
    pages: list[Page] = []
    stands: dict[int, Weights] = {}

    def add(role: Role, weights: Weights, layer: int | None = None, expert: int | None = None,
            part: int = 0) -> None:  # fmt: skip
        stands[len(pages)] = weights
        pages.append(Page(len(pages), role, (), 1, layer, expert, part))

    add(Role.EMBED, Weights.TABLE)
    experts = _experts(shape, shape.groups, shape.read)
    for layer in range(shape.layers):
        add(Role.LAYER, Weights.LAYER, layer)
        here = experts if layer else _experts(shape, *shape.first)
        for number, weights in enumerate(here):
            expert, part = (number, 0) if shape.routed else (0, number)
            add(Role.EXPERT, weights, layer, expert, part)
    add(Role.FINAL, Weights.FINAL)
    for part in range(max(1, shape.head)):
        add(Role.HEAD, Weights.HEAD, part=part)
    count = max(2, len(experts), len(_experts(shape, *shape.first))) if shape.routed else 1
    model = ModelSpec("sketch", shape.layers, 1, 1, 1, 1, 1, 1, experts=count)
    return _Small(model, tuple(pages), _policy(shape, stands), stands)


def _experts(shape: Shape, groups: int, read: int) -> list[Weights]:
    """Pages of one layer: those the processor has, those that stay, streamed ones mixed evenly."""
    slow = [((i + 0.5) / read, Weights.ON_DISK) for i in range(read)]
    fast = [((i + 0.5) / groups, Weights.EXPERTS) for i in range(groups)]
    first = [Weights.BESIDE] * shape.beside + [Weights.HELD] * shape.held
    return [*first, *(weights for _, weights in sorted(slow + fast))]


def _policy(shape: Shape, stands: dict[int, Weights]) -> Policy:
    held = {Weights.HELD, Weights.FINAL}
    if not shape.layer:
        held.add(Weights.LAYER)
    if not shape.head:
        held.add(Weights.HEAD)
    if shape.table_held:
        held.add(Weights.TABLE)

    def ids(wanted: set[Weights] | frozenset[Weights]) -> frozenset[int]:
        return frozenset(page for page, weights in stands.items() if weights in wanted)

    return Policy(
        shape.schedule,
        max_rows=shape.parts,
        max_seqs=shape.parts,
        micro_batches=shape.parts,
        resident=ids(held),
        ring_slots=shape.ring,
        slot_bytes=1,
        disk_lanes=shape.disk_lanes,
        kv_blocks=shape.parts,
        compute="device",
        pageable=shape.pageable,
        on_disk=ids(shape.on_disk - held),
        stage_slots=shape.stage,
        kv_on_device=_share(shape),
        cpu_experts=ids({Weights.BESIDE}),
    )


def _share(shape: Shape) -> float:
    return shape.kv_parts / shape.parts if shape.schedule == "flexgen" else 0.0
