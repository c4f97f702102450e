"""The stepper: when it runs, in which order, how it fails."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from terms import Terms

from headrace.errors import TaskError
from headrace.machines.machine import Cancelled
from headrace.machines.orders import Edge, TaskGraph, breaking, delaying, shuffled
from headrace.machines.stepper import Stepper
from headrace.machines.trace import Span, SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task

A, B = Buffer("slot", 0), Buffer("slot", 1)
READ = Task(Op.READ_PAGE, "disk0", (), (A,))
READ_TOO = Task(Op.READ_PAGE, "disk0", (), (B,))
USE = Task(Op.EXPERT, "cpu", (A,), ())
SWEEP = Schedule("test", (READ, USE, READ_TOO), {})


def test_nothing_runs_until_someone_waits_then_all_does_in_list_order() -> None:
    ran: list[tuple[Op, str]] = []
    traces: list[SweepTrace] = []
    bodies = dict.fromkeys(Op, lambda task, views, sweep: ran.append((task.op, sweep)))
    stepper = Stepper(bodies, lambda b: b, sink=traces.append)
    one, two = stepper.append(SWEEP, "one"), stepper.append(SWEEP, "two")
    assert not ran
    trace = one.wait()
    assert ran == [(task.op, sweep) for sweep in ("one", "two") for task in SWEEP.tasks]
    assert traces == [trace, two.wait()]
    assert traces[1].spans == (Span(0, 3, 4), Span(1, 4, 5), Span(2, 5, 6))


def test_a_failure_names_its_task_and_forgets_the_rest() -> None:
    def body(task: Task, views: Any, sweep: str) -> None:
        if sweep == "bad":
            raise ValueError("no")

    stepper = Stepper(dict.fromkeys(Op, body), lambda b: b)
    bad, later = stepper.append(SWEEP, "bad"), stepper.append(SWEEP, "later")
    with pytest.raises(TaskError, match="read_page of sweep 0"):
        bad.wait()
    with pytest.raises(Cancelled):
        later.wait()
    assert stepper.append(SWEEP, "good").wait().index == 2


def test_what_is_cancelled_never_runs() -> None:
    stepper = Stepper({}, lambda b: b)
    ticket = stepper.append(SWEEP, None)
    stepper.close()
    with pytest.raises(Cancelled):
        ticket.wait()


def test_delaying_keeps_waits_and_breaking_leaves_one_out() -> None:
    graph = TaskGraph.of([SWEEP, SWEEP])
    assert graph.waits == (Edge(0, 1), Edge(1, 3), Edge(3, 4))
    assert list(delaying(1)(graph)) == [0, 2, 1, 3, 4, 5]
    assert list(breaking(Edge(1, 3))(graph)) == [0, 2, 3, 5, 1, 4]


def test_shuffled_orders_are_legal_and_differ() -> None:
    graph = TaskGraph.of([SWEEP] * 3)
    orders = {tuple(shuffled(Random(seed))(graph)) for seed in range(20)}
    assert len(orders) > 1
    for order in orders:
        assert all(order.index(a) < order.index(b) for a, b in (*graph.waits, *graph.lane_edges))


def test_poison_spoils_what_nobody_needs_any_more() -> None:
    """A's first value dies with its reader; its last may be read by a sweep to come."""
    spoilt: list[Buffer] = []
    terms = Terms()
    stepper = Stepper(terms.bodies, terms.view, poison=spoilt.append)
    stepper.append(Schedule("test", (READ, USE, READ, USE), {}), None).wait()
    assert spoilt == [A]
