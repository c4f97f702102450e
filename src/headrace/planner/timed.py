"""What a rehearsal brings: tasks as they ran, and the names they go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Timed(NamedTuple):
    """One task as it ran: its op, the rows, amounts (by roof) and sequences that the work model
    counts for it, so that prediction and calibration agree, and the seconds it took."""

    op: str
    rows: float
    amounts: Mapping[str, float]
    seconds: float
    sequences: float = 0.0


Sweeps = Sequence[Sequence[Timed]]
"""Repeated sweeps of one load, task by task."""


ROW_READ_OP, PAGE_READ_OP = "read_rows", "read_page"
"""Fetches rows of a table; a page."""

BETWEEN, PASSED = "between", "passed"
"""From a task's end to the start of the next one of its lane, which waits for nothing else; to the
next one of an expert that nobody came to: it is passed over. In the midst of sweeps, whose weights
drive the interpreter out of the caches: both are two or three times shorter with idle bodies."""

OTHERS = ("one_by_one", "on_demand")
"""Schedules with curves of their own: one reads beside nothing, the other now and then."""


def name_of(op: str, schedule: str) -> str:
    """An op's name in curves: how close it comes to its roof depends on what goes on beside it,
    which the schedule decides. Curves of ``stream``, which reads all the time, stand for all but
    two: those of ``on_demand``, which reads now and then, and of ``one_by_one``, whose reads have
    the disk to themselves (and, of pages, are as long as handing over to and from them makes them)
    and whose arithmetic begins with threads that slept."""
    return f"{op} of {schedule}" if schedule in OTHERS else op


def op_of(name: str) -> str:
    """The op of a curve's name."""
    return name.partition(" of ")[0]


EXPERTS = ("expert", "moe", "expert_up", "expert_down")
"""Ops of which one stands for those that no task of the rehearsal had: a schedule has either a task
per page or one per layer."""

PER_EXPERT = tuple(op for op in EXPERTS if op != "moe")
