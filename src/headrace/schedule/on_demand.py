"""Few tokens: an expert's page is read only if its layer's router chose it."""

from __future__ import annotations

from headrace.schedule.blocks import read_ahead, read_if_routed
from headrace.schedule.placement import Placement
from headrace.schedule.stream import page_by_page
from headrace.schedule.task import Task


def on_demand(at: Placement) -> list[Task]:
    """The list of ``stream``, but reads of experts wait for the router.

    A read that nobody needs moves no bytes, and its expert's task finds no rows.
    """
    return read_ahead(at, page_by_page(at), read_if_routed)
