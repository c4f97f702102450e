"""The threads machine: overlap, failures, cancelling, reuse."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headrace.errors import ScheduleError, TaskError
from headrace.machines.machine import Cancelled
from headrace.machines.threads import Threads
from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task

A, B = Buffer("slot", 0), Buffer("slot", 1)
READ = Task(Op.READ_PAGE, "disk0", (), (A,))
USE = Task(Op.EXPERT, "cpu", (A,), ())
OTHER = Task(Op.ATTN, "cpu", (B,), ())
COMMIT = Task(Op.COMMIT, "host", (A,), ())
SECONDS = 5.0


def schedule(*tasks: Task) -> Schedule:
    return Schedule("test", tasks, {})


@contextmanager
def threads(body: Callable[..., None], **options: Any) -> Iterator[Threads]:
    machine = Threads(dict.fromkeys(Op, body), lambda b: b, time.perf_counter, **options)
    with machine:
        yield machine


def nothing(task: Task, views: Any, sweep: Any) -> None:
    pass


def test_lanes_overlap_and_waits_hold() -> None:
    """The read ends only once OTHER has begun; USE comes after it."""
    begun = threading.Event()

    def body(task: Task, views: Any, sweep: Any) -> None:
        if task is READ:
            assert begun.wait(SECONDS)
        if task is OTHER:
            begun.set()

    with threads(body) as machine:
        trace = machine.append(schedule(READ, OTHER, USE), None).wait(SECONDS)
    assert trace.spans[0].end > trace.spans[1].start
    assert trace.spans[2].start >= trace.spans[0].end


def test_a_thread_that_cannot_start_is_an_error_not_a_wait_for_ever(monkeypatch) -> None:
    real, refused = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if not refused and thread.name.startswith("headrace-cpu"):
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with threads(nothing) as machine:
        with pytest.raises(RuntimeError, match="new thread"):
            machine.append(schedule(READ, OTHER, USE), None)
        machine.cancel()
        machine.append(schedule(READ, OTHER, USE), None).wait(SECONDS)
    assert refused


def test_a_read_of_the_next_sweep_starts_before_this_one_ends() -> None:
    read_ahead = threading.Event()

    def body(task: Task, views: Any, sweep: str) -> None:
        if task is READ and sweep == "next":
            read_ahead.set()
        if task is OTHER and sweep == "this":
            assert read_ahead.wait(SECONDS), "the seam drained"

    with threads(body) as machine:
        this = machine.append(schedule(READ, USE, OTHER), "this")
        following = machine.append(schedule(READ, USE, OTHER), "next")
        assert following.wait(SECONDS).spans[0].start < this.wait(SECONDS).end


def test_bodies_see_declared_buffers_and_their_sweep() -> None:
    seen = []

    with threads(lambda task, views, sweep: seen.append((dict(views), sweep))) as machine:
        machine.append(schedule(Task(Op.ROUTER, "cpu", (A,), (B,))), "it").wait(SECONDS)
    assert seen == [({A: A, B: B}, "it")]


def test_inline_lanes_share_a_thread_and_keep_list_order_among_what_is_ready() -> None:
    names, order = set(), []

    def body(task: Task, views: Any, sweep: Any) -> None:
        names.add(threading.current_thread().name)
        order.append(task)

    started: list[str] = []
    with threads(body, inline={"host": "cpu"}, on_start=started.append) as machine:
        machine.append(schedule(OTHER, COMMIT, OTHER), None).wait(SECONDS)
    assert names == {"headrace-cpu"}
    assert order == [OTHER, COMMIT, OTHER]
    assert started == ["cpu"]


def test_a_failure_is_raised_once_names_its_task_and_leaves_the_machine_reusable() -> None:
    def body(task: Task, views: Any, sweep: str) -> None:
        ran.append((task.op, sweep))
        if sweep == "bad" and task is READ:
            raise OSError("no such sector")

    ran: list[tuple[Op, str]] = []
    with threads(body) as machine:
        good = machine.append(schedule(READ, USE), "good")
        bad = machine.append(schedule(READ, USE), "bad")
        later = machine.append(schedule(READ, USE), "later")
        with pytest.raises(TaskError, match=r"read_page of sweep 1 .* no such sector") as caught:
            bad.wait(SECONDS)
        assert isinstance(caught.value.__cause__, OSError)
        assert (caught.value.task, caught.value.sweep) == (READ, 1)
        with pytest.raises(Cancelled):
            later.wait(SECONDS)
        assert len(good.wait(SECONDS).spans) == 2
        assert len(machine.append(schedule(READ, USE), "again").wait(SECONDS).spans) == 2
    assert (Op.EXPERT, "bad") not in ran
    assert not any(sweep == "later" for _, sweep in ran)


def test_a_schedule_that_failed_half_way_waits_anew_when_it_comes_again() -> None:
    """Its waits are known by then, and are counted from where the machine starts afresh."""
    again = schedule(READ, USE, OTHER, COMMIT)
    ran: list[Op] = []

    def body(task: Task, views: Any, sweep: str) -> None:
        if sweep == "bad" and task is USE:
            raise ValueError
        if task is READ:
            time.sleep(0.002)
        ran.append(task.op)

    with threads(body) as machine:
        for _ in range(4):  # by now it is met, and its waits only move
            machine.append(again, "good").wait(SECONDS)
        for end in ("bad", "cancelled"):
            ticket = machine.append(again, end)
            if end == "bad":
                with pytest.raises(TaskError):
                    ticket.wait(SECONDS)
            else:
                machine.cancel()
            for _ in range(3):
                ran.clear()
                assert len(machine.append(again, "good").wait(SECONDS).spans) == 4
                assert ran.index(READ.op) < ran.index(USE.op)


def test_what_is_appended_after_an_untold_failure_does_not_run() -> None:
    ran = []

    def body(task: Task, views: Any, sweep: str) -> None:
        ran.append(sweep)
        raise ValueError

    with threads(body) as machine:
        first = machine.append(schedule(USE), "first")
        while not first.run.over:
            time.sleep(0.001)
        with pytest.raises(TaskError):
            machine.append(schedule(USE), "second").wait(SECONDS)
    assert ran == ["first"]


def test_cancel_waits_for_running_bodies_and_forgets_the_rest() -> None:
    inside, release, ended = threading.Event(), threading.Event(), threading.Event()

    def body(task: Task, views: Any, sweep: str) -> None:
        if sweep == "slow":
            assert task is READ
            inside.set()
            assert release.wait(SECONDS)
            time.sleep(0.01)
            ended.set()

    with threads(body) as machine:
        slow = machine.append(schedule(READ, USE), "slow")
        assert inside.wait(SECONDS)
        threading.Timer(0.01, release.set).start()
        machine.cancel()
        assert ended.is_set()
        with pytest.raises(Cancelled):
            slow.wait(SECONDS)
        assert len(machine.append(schedule(READ, USE), "quick").wait(SECONDS).spans) == 2


def test_waiting_times_out_and_may_be_tried_again() -> None:
    release = threading.Event()
    with threads(lambda *_: release.wait(SECONDS)) as machine:
        ticket = machine.append(schedule(USE), None)
        with pytest.raises(TimeoutError):
            ticket.wait(0.01)
        release.set()
        assert ticket.wait(SECONDS).spans


def test_a_failing_sink_or_start_is_told_as_well() -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("full")

    for options in ({"sink": fail}, {"on_start": fail}):
        with threads(nothing, **options) as machine, pytest.raises(TaskError, match="full"):
            machine.append(schedule(USE), None).wait(SECONDS)


def test_sinks_get_every_sweep_before_its_ticket() -> None:
    traces: list[SweepTrace] = []
    with threads(nothing, sink=traces.append) as machine:
        for index in range(3):
            ticket = machine.append(schedule(READ, USE), index)
            assert ticket.wait(SECONDS) is traces[index]
    assert [trace.sweep for trace in traces] == [0, 1, 2]


def test_an_empty_schedule_ends_at_once() -> None:
    with threads(nothing) as machine:
        assert machine.append(schedule(), None).wait(SECONDS).spans == ()


def test_close_ends_the_threads_and_may_be_repeated() -> None:
    with threads(nothing) as machine:
        machine.append(schedule(READ, USE), None).wait(SECONDS)
        machine.close()
        machine.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("headrace-")]
        with pytest.raises(ScheduleError, match="closed"):
            machine.append(schedule(USE), None)


def test_a_storm_of_failures_and_cancels_leaves_it_whole() -> None:
    def body(task: Task, views: Any, sweep: int) -> None:
        if sweep % 3 == 0:
            raise ValueError(sweep)

    with threads(body) as machine:
        for turn in range(100):
            ticket = machine.append(schedule(READ, OTHER, USE, COMMIT), turn)
            if turn % 3 == 0:
                with pytest.raises(TaskError):
                    ticket.wait(SECONDS)
            elif turn % 3 == 1:
                assert len(ticket.wait(SECONDS).spans) == 4
            else:
                machine.cancel()


def test_views_are_made_once_per_schedule_and_let_go_with_it_or_with_the_machine() -> None:
    class Memory:
        pass

    made: list[weakref.ref[Memory]] = []
    seen: list[int] = []

    def view_of(buffer: Buffer) -> Memory:
        memory = Memory()
        made.append(weakref.ref(memory))
        return memory

    def body(task: Task, views: Any, sweep: Any) -> None:
        assert set(views) == {*task.reads, *task.writes}
        seen.append(id(views))

    kept, dropped = schedule(READ, USE), schedule(OTHER)
    with Threads(dict.fromkeys(Op, body), view_of, time.perf_counter) as machine:
        for _ in range(3):
            machine.append(kept, None).wait(SECONDS)
        machine.append(dropped, None).wait(SECONDS)
        assert len(made) == 3  # A for READ, A for USE, B for OTHER
        assert len(set(seen)) == 3
        del dropped
        machine.append(kept, None).wait(SECONDS)  # the lane has something else in hand
        gc.collect()
        assert [m() is None for m in made] == [False, False, True]
    gc.collect()
    assert all(m() is None for m in made), "a schedule that is kept keeps no memory"


def test_what_has_nothing_to_do_is_over_when_its_turn_comes_without_its_body() -> None:
    """The read is passed over only after what it waits for; what waits for it goes on."""
    route = Task(Op.ROUTER, "cpu", (), (B,))
    read = Task(Op.READ_PAGE, "disk0", (B,), (A,))
    ran: list[Task] = []

    def passes(task: Task, sweep: Any) -> bool:
        assert task is not read or route in ran
        return task is read or task is USE

    with threads(lambda task, views, sweep: ran.append(task), passes=passes) as machine:
        sweeps = [machine.append(schedule(route, read, USE, OTHER), None) for _ in range(100)]
        traces = [sweep.wait(SECONDS) for sweep in sweeps]
    assert ran == [route, OTHER] * 100
    for trace in traces:
        assert [span.task for span in trace.spans] == [0, 1, 2, 3]
        assert trace.spans[1].start == trace.spans[1].end >= trace.spans[0].end
        assert trace.spans[2].start == trace.spans[2].end >= trace.spans[1].end


def test_the_last_task_that_is_left_of_a_sweep_is_never_passed_over() -> None:
    """COMMIT or USE: they are of lanes of their own, and do not wait for each other."""
    ran: list[Task] = []
    with threads(lambda task, views, sweep: ran.append(task), passes=lambda *_: True) as machine:
        for count in range(1, 201):
            trace = machine.append(schedule(READ, USE, COMMIT), None).wait(SECONDS)
            assert len(trace.spans) == 3
            assert len(ran) == count
    assert set(ran) <= {USE, COMMIT}


def test_where_it_cannot_be_said_whether_a_task_passes_it_runs() -> None:
    ran: list[Task] = []

    def passes(task: Task, sweep: Any) -> bool:
        raise KeyError("layer 7")

    with threads(lambda task, views, sweep: ran.append(task), passes=passes) as machine:
        machine.append(schedule(READ, USE, COMMIT), None).wait(SECONDS)
    assert len(ran) == 3
    assert set(ran) == {READ, USE, COMMIT}
