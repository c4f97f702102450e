"""Pages stream through a ring, read as far ahead as it has slots: weights cross once a sweep."""

from __future__ import annotations

from headrace.schedule.blocks import attention, begin, experts, finish, read, read_ahead
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def stream(at: Placement) -> list[Task]:
    """Every page that is not resident is read in every sweep, none waits for a decision."""
    return read_ahead(at, page_by_page(at), read)


def page_by_page(at: Placement) -> list[Task]:
    """One sweep without its reads, expert by expert."""
    tasks = [*begin(at)]
    for layer in range(at.model.layers):
        tasks += [*attention(at, layer), *experts(at, layer)]
    return [*tasks, *finish(at)]
