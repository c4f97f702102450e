"""Everything fits: no reads, and one task per layer for all experts."""

from __future__ import annotations

from headrace.errors import UsageError
from headrace.schedule.blocks import attention, begin, finish, moe
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def resident(at: Placement) -> list[Task]:
    """Coarse on purpose: beside a small resident model, the cost of a task counts.

    Raises UsageError when a page is not resident (embedding rows may still come from disk).
    """
    if at.streamed:
        raise UsageError(
            "schedule resident with pages that are not",
            expected="every page in policy.resident",
            got=f"{len(at.streamed)} pages to stream",
            hint="schedule stream, or a larger memory budget",
        )
    tasks = [*begin(at)]
    for layer in range(at.model.layers):
        tasks += [*attention(at, layer), *moe(at, layer)]
    return [*tasks, *finish(at)]
