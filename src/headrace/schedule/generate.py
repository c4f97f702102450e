"""From a policy to the schedule of one sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.schedule.cgopipe import cgopipe
from headrace.schedule.fastdecode import fastdecode
from headrace.schedule.flexgen import flexgen
from headrace.schedule.flexgen_c import flexgen_c
from headrace.schedule.on_demand import on_demand
from headrace.schedule.one_by_one import one_by_one
from headrace.schedule.placement import Placement, streamed_pages
from headrace.schedule.resident import resident
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.stream import stream
from headrace.schedule.task import Schedule, Task
from headrace.schedule.two_group import two_group
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

GENERATORS: Mapping[str, Callable[[Placement], list[Task]]] = {
    "resident": resident,
    "one_by_one": one_by_one,
    "stream": stream,
    "on_demand": on_demand,
    "flexgen": flexgen,
    "flexgen_c": flexgen_c,
    "fastdecode": fastdecode,
    "cgopipe": cgopipe,
    "two_group": two_group,
}
"""Policy.schedule -> its generator."""


def generate(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    phase: int = 0,
    page_bytes: Mapping[int, int] | None = None,
) -> Schedule:
    """The schedule of one sweep under ``policy``; the same arguments give the same schedule.

    ``phase`` is the ring slot of the sweep's first streamed page (``next_phase`` of the sweep
    before). ``page_bytes`` gives the memory each page takes, if known (see ``buffer_sizes``).
    Raises UsageError when the policy cannot be honoured.
    """
    tasks = list_tasks(model, pages, policy, phase)
    sizes = buffer_sizes(model, pages, policy, page_bytes)
    touched = dict.fromkeys(b for task in tasks for b in (*task.reads, *task.writes))
    return Schedule(policy.schedule, tasks, {buffer: sizes[buffer] for buffer in touched})


def list_tasks(
    model: ModelSpec, pages: tuple[Page, ...], policy: Policy, phase: int = 0
) -> tuple[Task, ...]:
    """The tasks of ``generate``, without the sizes of what they touch."""
    return tuple(GENERATORS[policy.schedule](Placement(model, pages, policy, phase)))


def next_phase(pages: tuple[Page, ...], policy: Policy, phase: int = 0) -> int:
    """Where the ring stands after a sweep that began at ``phase``."""
    return (phase + len(streamed_pages(pages, policy))) % max(policy.ring_slots, 1)
