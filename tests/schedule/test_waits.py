"""Waits: every hazard found, none that something else implies, also across schedules."""

from __future__ import annotations

from dataclasses import replace

from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.machines.orders import TaskGraph
from headrace.schedule.task import Buffer, Op, Schedule, Task
from headrace.schedule.waits import Hazards, Wait

A, B = Buffer("a"), Buffer("b")


def task(lane: str, reads: tuple[Buffer, ...] = (), writes: tuple[Buffer, ...] = ()) -> Task:
    return Task(Op.ATTN, lane, reads, writes)


def waits(*tasks: Task) -> list[tuple[Wait, ...]]:
    return list(Hazards().append(Schedule("test", tasks, {})))


def test_a_reader_waits_for_the_last_writer() -> None:
    found = waits(task("x", (), (A,)), task("x", (), (A,)), task("y", (A,)))
    assert found == [(), (), (Wait("x", 1),)]


def test_a_writer_waits_for_the_readers_since_the_last_write_of_every_lane() -> None:
    found = waits(task("x", (A,)), task("y", (A,)), task("z", (), (A,)))
    assert set(found[2]) == {Wait("x", 0), Wait("y", 0)}


def test_a_writer_waits_for_the_last_writer() -> None:
    assert waits(task("x", (), (A,)), task("y", (), (A,)))[1] == (Wait("x", 0),)


def test_readers_do_not_wait_for_each_other() -> None:
    assert waits(task("x", (A,)), task("y", (A,))) == [(), ()]


def test_lane_order_implies_waits_within_a_lane() -> None:
    assert waits(task("x", (), (A,)), task("x", (A,), (A,))) == [(), ()]


def test_lane_order_implies_what_the_lane_waited_for_before() -> None:
    found = waits(task("x", (), (A,)), task("y", (A,)), task("y", (A,)))
    assert found[2] == ()


def test_a_newer_wait_implies_an_older_one() -> None:
    """z reads A of x and B of y; y read A as well, so waiting for y is enough."""
    found = waits(task("x", (), (A,)), task("y", (A,), (B,)), task("z", (A, B)))
    assert found[2] == (Wait("y", 0),)


def test_positions_and_hazards_go_on_across_the_seam() -> None:
    hazards = Hazards()
    sweep = Schedule("test", (task("x", (), (A,)), task("y", (A,))), {})
    assert hazards.append(sweep) == ((), (Wait("x", 0),))
    assert hazards.append(sweep) == ((Wait("y", 0),), (Wait("x", 1),))


@settings(max_examples=30, deadline=None)
@given(cases(max_layers=2, max_experts=6))
def test_waits_are_exactly_the_conflicts_less_what_is_implied(case: Case) -> None:
    """Against the definition: all conflicting pairs, closed over, and nothing redundant."""
    graph = TaskGraph.of(case.schedules()[:2])
    before = closure(graph.predecessors(), len(graph.tasks))
    for after, later in enumerate(graph.tasks):
        writes, touches = set(later.writes), {*later.reads, *later.writes}
        for earlier in range(after):
            other = graph.tasks[earlier]
            if not (touches.isdisjoint(other.writes) and writes.isdisjoint(other.reads)):
                assert before[after] >> earlier & 1, (earlier, after)
    for wait in graph.waits:
        rest = graph.predecessors(without=wait)[wait.after]
        assert not any(before[p] >> wait.before & 1 or p == wait.before for p in rest), wait


ROUNDS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 12)),
    min_size=1,
    max_size=4,
)
"""Schedules by number, and how often they go round."""


@settings(max_examples=40, deadline=None)
@given(cases(max_layers=2, max_experts=4), ROUNDS, st.booleans())
def test_lists_that_come_again_wait_as_if_each_were_a_new_one(
    case: Case, rounds: list[tuple[list[int], int]], seam: bool
) -> None:
    kinds = [*case.schedules()[:2], Schedule("other", (task("x", (A,), (B,)),), {})]
    remembering, deriving = Hazards(), Hazards()
    for numbers, times in rounds:
        for number in numbers * times:
            schedule = kinds[number % len(kinds)]
            wanted = deriving.append(replace(schedule))  # equal, and another object
            waits, start = remembering.place(schedule)
            placed = [
                tuple(Wait(lane, at + start.get(lane, 0)) for lane, at in each) for each in waits
            ]
            assert placed == list(wanted)
        if seam:
            one = kinds[0].tasks[0]
            assert remembering.add(one) == deriving.add(one)


@settings(max_examples=20, deadline=None)
@given(cases(max_layers=2, max_experts=4), st.integers(1, 2))
def test_what_goes_round_is_derived_a_few_times_only(case: Case, length: int) -> None:
    hazards, kinds = Hazards(), case.schedules()[:length]
    for schedule in kinds * 10:
        hazards.append(schedule)
    before = hazards.derived
    for schedule in kinds * 20:
        hazards.append(schedule)
    assert hazards.derived == before


def test_a_schedule_that_is_gone_is_not_taken_for_another() -> None:
    """Another object may lie where it lay."""
    hazards = Hazards()
    for lane in ("x", "y") * 10:
        schedule = Schedule("test", (task(lane, (), (A,)), task("z", (A,))), {})
        *_, (wait,) = hazards.append(schedule)
        assert wait.lane == lane
        del schedule


def closure(predecessors: list[list[int]], count: int) -> list[int]:
    """Per task, the bit set of all that comes before it."""
    found = [0] * count
    for place, direct in enumerate(predecessors):
        for other in direct:
            found[place] |= found[other] | 1 << other
    return found
