"""No overlap: the baseline against which overlap is measured."""

from __future__ import annotations

from headrace.schedule.blocks import in_turn
from headrace.schedule.cgopipe import cgopipe
from headrace.schedule.placement import Placement
from headrace.schedule.stream import stream
from headrace.schedule.task import Task


def one_by_one(at: Placement) -> list[Task]:
    """Exactly the tasks of ``stream``, in its order, one at a time; beside a device, those of
    ``cgopipe``."""
    return in_turn(cgopipe(at) if at.policy.on_device else stream(at))
