"""The pieces every schedule is made of, in the order in which a sweep uses them.

Everything that knows the batch reads ``batch``; every task of the compute lane may write
``scratch``, and none may read what another left there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from headrace.schedule.lanes import H2D, HOST, ROWS, disk_lane
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.pages import Page, Role

_REQUESTS = Buffer("requests")
_BATCH = Buffer("batch")
_ROWS = Buffer("rows")
_ROWS_SENT = Buffer("rows_sent")
_Q = Buffer("q")
_ATTENDED = Buffer("attended")
_INTER = Buffer("inter")
_FINAL = Buffer("final")
_LOGITS = Buffer("logits")
_SAMPLED = Buffer("sampled")
_SCRATCH = Buffer("scratch")
_BATON = Buffer("baton")

_EXPERT_OPS = {
    Role.EXPERT: Op.EXPERT,
    Role.EXPERT_UP: Op.EXPERT_UP,
    Role.EXPERT_DOWN: Op.EXPERT_DOWN,
}


def begin(at: Placement) -> Iterator[Task]:
    """From requests to hidden states: form the batch, look its tokens up."""
    yield Task(Op.BIND, HOST, (_REQUESTS,), (_REQUESTS, _BATCH))
    table: tuple[Buffer, ...] = tuple(at.home[page.id] for page in at.embed)
    if at.rows_from_disk:
        table = (_ROWS,)
        yield Task(Op.READ_ROWS, ROWS, (_BATCH, *at.table), table)
        if at.policy.on_device:
            table = (_ROWS_SENT,)
            yield Task(Op.LOAD_ROWS, H2D, (_BATCH, _ROWS), table)
    for mb, hidden in enumerate(_each(at, "hidden")):
        yield compute(at, Op.EMBED, table, (hidden,), mb=mb)


def attention(at: Placement, layer: int) -> Iterator[Task]:
    """One layer up to its experts: attention per micro-batch, then routing (if any)."""
    page = at.layers[layer]
    weights = at.home[page.id]
    kv = Buffer("kv", layer)
    here = {"layer": layer, "page": page.id}
    for mb in range(at.policy.micro_batches):
        hidden, normed = Buffer("hidden", mb), Buffer("normed", mb)
        yield compute(at, Op.PRE_ATTN, (hidden, weights, kv), (_Q, kv), mb=mb, **here)
        yield compute(at, Op.ATTN, (_Q, kv), (_ATTENDED,), mb=mb, layer=layer)
        yield compute(
            at, Op.POST_ATTN, (_ATTENDED, weights, hidden), (hidden, normed), mb=mb, **here
        )
    if at.model.is_routed(layer):
        for mb, routing in enumerate(_each(at, "routing")):
            yield compute(at, Op.ROUTER, (Buffer("normed", mb), weights), (routing,), mb=mb, **here)


def experts(at: Placement, layer: int) -> Iterator[Task]:
    """The experts of a layer, each over all micro-batches, in ascending order."""
    hidden, normed, routing = _each(at, "hidden"), _each(at, "normed"), _routing(at, layer)
    for page in at.experts[layer]:
        weights = at.home[page.id]
        reads: tuple[Buffer, ...] = (*normed, *routing, weights, *hidden)
        writes = hidden
        if page.role is Role.EXPERT_UP:  # the first part starts a new intermediate
            reads = (*normed, *routing, weights, *((_INTER,) if page.part else ()))
            writes = (_INTER,)
        elif page.role is Role.EXPERT_DOWN:
            reads = (_INTER, *routing, weights, *hidden)
        op = _EXPERT_OPS[page.role]
        yield compute(at, op, reads, writes, layer=layer, page=page.id, expert=page.expert)


def moe(at: Placement, layer: int) -> Iterator[Task]:
    """The experts of a layer as one task, in the same order: for weights that never move."""
    hidden = _each(at, "hidden")
    weights = [at.home[page.id] for page in at.experts[layer]]
    inter = (_INTER,) if any(p.role is Role.EXPERT_UP for p in at.experts[layer]) else ()
    reads = (*_each(at, "normed"), *_routing(at, layer), *weights, *hidden)
    yield compute(at, Op.MOE, reads, (*hidden, *inter), layer=layer)


def finish(at: Placement) -> Iterator[Task]:
    """From hidden states to committed tokens."""
    final = (*_each(at, "hidden"), at.home[at.final.id])
    yield compute(at, Op.FINAL, final, (_FINAL,), page=at.final.id)
    for page in at.head:
        earlier = (_LOGITS,) if page.part else ()
        yield compute(at, Op.LOGITS, (_FINAL, at.home[page.id], *earlier), (_LOGITS,), page=page.id)
    yield compute(at, Op.SAMPLE, (_LOGITS, _REQUESTS), (_SAMPLED,))
    yield Task(Op.COMMIT, HOST, (_SAMPLED, _BATCH, _REQUESTS), (_REQUESTS,))


def read_ahead(
    at: Placement, tasks: Sequence[Task], reading: Callable[[Placement, int, Page], Task]
) -> list[Task]:
    """``tasks`` with the read of each streamed page, as early as may be.

    A page may be read once the last user of its slot's previous page stands before it, and
    once all that the read itself reads is written. Reads of a sweep's first pages stand in
    front of everything, so that they run during the tail of the sweep before.
    """
    last_use = {task.page: place for place, task in enumerate(tasks, start=1)}
    routed = {task.layer: i for i, task in enumerate(tasks, start=1) if task.op is Op.ROUTER}
    before: list[list[Task]] = [[] for _ in tasks]
    place = 0
    for index, page in enumerate(at.streamed):
        task = reading(at, index, page)
        if index >= at.policy.ring_slots:
            place = max(place, last_use[at.streamed[index - at.policy.ring_slots].id])
        if task.reads:
            place = max(place, routed[task.layer])
        before[place].append(task)
    return [t for reads, task in zip(before, tasks, strict=True) for t in (*reads, task)]


def read(at: Placement, index: int, page: Page) -> Task:
    """Read the sweep's streamed page number ``index`` into its slot of the ring."""
    return Task(
        Op.READ_PAGE,
        disk_lane(index % at.policy.disk_lanes),
        reads=(),
        writes=(at.home[page.id],),
        layer=page.layer,
        page=page.id,
        expert=page.expert,
    )


def read_if_routed(at: Placement, index: int, page: Page) -> Task:
    """The same, but an expert's read waits for its layer's routing, which may spare it."""
    task, layer = read(at, index, page), page.layer
    if layer is None or page.expert is None or at.model.visited_by_all(layer, page.expert):
        return task
    return replace(task, reads=_routing(at, layer))


def in_turn(tasks: Iterable[Task]) -> list[Task]:
    """The same tasks, each handing a baton to the next: nothing overlaps."""
    return [
        replace(task, reads=(*task.reads, _BATON), writes=(*task.writes, _BATON)) for task in tasks
    ]


def compute(
    at: Placement,
    op: Op,
    reads: tuple[Buffer, ...],
    writes: tuple[Buffer, ...],
    layer: int | None = None,
    mb: int | None = None,
    page: int | None = None,
    expert: int | None = None,
) -> Task:
    """A task of the lane that multiplies: it reads the batch, and may write scratch."""
    return Task(op, at.lane, (_BATCH, *reads), (*writes, _SCRATCH), layer, mb, page, expert)


def _each(at: Placement, name: str) -> tuple[Buffer, ...]:
    """``name`` of every micro-batch."""
    return tuple(Buffer(name, mb) for mb in range(at.policy.micro_batches))


def _routing(at: Placement, layer: int) -> tuple[Buffer, ...]:
    return _each(at, "routing") if at.model.is_routed(layer) else ()
