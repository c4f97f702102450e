"""How weights get to a device: uploads into its ring, and what must happen before each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from headrace.errors import UsageError
from headrace.schedule.lanes import H2D, HOST, STAGE, disk_lane
from headrace.schedule.placement import Placement
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.pages import Page


def check_two_layers(at: Placement) -> None:
    """Refuse a ring that cannot hold what one layer uses and the next one's pages beside it."""
    counts = [len(at.streamed_in(layer)) for layer in range(at.model.layers + 1)]
    needed = max(a + b for a, b in pairwise(counts))
    if at.policy.ring_slots < needed:
        raise UsageError(
            f"ring of schedule {at.policy.schedule}",
            expected=f"at least {needed} slots: the streamed pages of two layers",
            got=at.policy.ring_slots,
            hint="more resident pages, or more slots",
        )


def uploads(at: Placement, layer: int, lane: str = H2D) -> list[Task]:
    """Every streamed page of ``layer`` (of the head, behind the last) to its slot."""
    return [_upload(at, index, page, lane) for index, page in at.streamed_in(layer)]


def share_of_uploads(at: Placement, layer: int, part: int, parts: int) -> list[Task]:
    """The same, dealt evenly into ``parts``, the first page into the first part."""
    pages = at.streamed_in(layer)
    first, last = (-(-len(pages) * i // parts) for i in (part, part + 1))
    return [_upload(at, index, page, H2D) for index, page in pages[first:last]]


def staged(at: Placement, tasks: Sequence[Task]) -> list[Task]:
    """``tasks`` with what brings pages into pinned memory: a copy from pageable memory, or a read
    from disk, each as soon as its slot is free again. The first ones stand in front."""
    before: list[list[Task]] = [[] for _ in tasks]
    emptied: list[int] = []  # places of the uploads that free a slot, one after the other
    found = list(tasks)
    slots = max(1, at.policy.stage_slots)
    for place, task in enumerate(tasks):
        if _SOME_SLOT in task.reads:
            number = len(emptied)
            slot = Buffer("stage", number % slots)
            free = 0 if number < slots else emptied[number - slots] + 1
            before[free].append(_into_stage(at, task, slot, number))
            reads = (slot if buffer == _SOME_SLOT else buffer for buffer in task.reads)
            found[place] = replace(task, reads=tuple(reads))
            emptied.append(place)
    return [t for ahead, task in zip(before, found, strict=True) for t in (*ahead, task)]


def in_steps(steps: Iterable[Sequence[Task]]) -> list[Task]:
    """Steps one after the other: each ends with a barrier that waits for all of it."""
    found: list[Task] = []
    for step in steps:
        lanes = list(dict.fromkeys(task.lane for task in step))
        done = {lane: Buffer("done", number) for number, lane in enumerate(lanes)}
        for task in step:
            reads, writes = (*task.reads, _BATON), (*task.writes, done[task.lane])
            found.append(replace(task, reads=reads, writes=writes))
        found.append(Task(Op.BARRIER, HOST, (_BATON, *done.values()), (_BATON,)))
    return found


_BATON = Buffer("baton")
_SOME_SLOT = Buffer("stage", -1)


def _upload(at: Placement, index: int, page: Page, lane: str) -> Task:
    source = _SOME_SLOT if at.is_staged(page) else Buffer("pinned", page.id)
    return Task(
        Op.UPLOAD_PAGE,
        lane,
        reads=(source,),
        writes=(at.home[page.id],),
        layer=page.layer,
        page=page.id,
        expert=page.expert,
    )


def _into_stage(at: Placement, upload: Task, slot: Buffer, number: int) -> Task:
    what = {"layer": upload.layer, "page": upload.page, "expert": upload.expert}
    if upload.page in at.policy.on_disk:
        lane = disk_lane(number % at.policy.disk_lanes)
        return Task(Op.READ_PAGE, lane, (), (slot,), **what)
    assert upload.page is not None
    return Task(Op.STAGE_PAGE, STAGE, (Buffer("home", upload.page),), (slot,), **what)
