"""When buffers are in use, and what tiers must hold."""

from __future__ import annotations

from headrace.schedule.lifetimes import Lifetime, Value, lifetimes, peak_bytes, values
from headrace.schedule.task import Buffer, Op, Schedule, Size, Task

A, B = Buffer("a"), Buffer("b")
TASKS = (
    Task(Op.EMBED, "cpu", (), (A,)),
    Task(Op.ATTN, "cpu", (A, B), (B,)),
    Task(Op.EMBED, "cpu", (), (A,)),
)


def test_lifetimes_are_first_and_last_uses() -> None:
    assert lifetimes(Schedule("test", TASKS, {})) == {A: Lifetime(0, 2), B: Lifetime(1, 1)}


def test_peak_counts_each_name_once_at_its_largest() -> None:
    one = Schedule("one", TASKS, {A: Size("host", 64), B: Size("pinned", 128)})
    two = Schedule("two", TASKS, {A: Size("host", 256)})
    assert peak_bytes([one, two]) == {"host": 256, "pinned": 128}


def test_a_write_that_does_not_read_starts_a_new_value() -> None:
    assert values(TASKS) == [(Value(A, 1),), (Value(A, 1), Value(B, 0)), (Value(A, 2),)]
