"""The virtual machine: shared roofs, efficiency, the seam."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.machines.machine import Cancelled
from headrace.machines.trace import SweepTrace
from headrace.machines.virtual import Virtual, fair_speeds
from headrace.schedule.task import Buffer, Op, Schedule, Task
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware

SLOT = Buffer("slot")
READ = Task(Op.READ_PAGE, "disk0", (), (SLOT,))
READ_TOO = Task(Op.READ_PAGE, "disk1", (), (Buffer("slot", 1),))
USE = Task(Op.EXPERT, "cpu", (SLOT,), ())
BESIDE = Task(Op.ATTN, "cpu", (), ())


def run(
    work: dict[Task, Work], *tasks: Task, lane_rate: float = 1e9, **options: object
) -> SweepTrace:
    hardware = Hardware(
        "test",
        {"disk": 10.0, "cpu_flops": 10.0},
        lane_rate=lane_rate,
        **{"task_seconds": 0.0} | options,
    )
    machine = Virtual(lambda task, sweep: work[task], hardware)
    return machine.append(Schedule("test", tasks, {}), None).wait()


def disk(lane: str, amount: float) -> Work:
    return Work({"disk": amount, f"lane:{lane}": amount}, 1)


def test_lanes_share_a_roof_equally_and_the_last_has_it_to_itself() -> None:
    """10 and 30 bytes over 10 bytes/s: both at half speed for 2 s, then 20 bytes alone."""
    trace = run({READ: disk("disk0", 10), READ_TOO: disk("disk1", 30)}, READ, READ_TOO)
    assert [span.end for span in trace.spans] == pytest.approx([2.0, 4.0])


def test_a_lane_alone_reaches_only_its_own_rate() -> None:
    work = {READ: disk("disk0", 12), READ_TOO: disk("disk1", 12)}
    assert run(work, READ, lane_rate=6.0).end == pytest.approx(2.0)
    assert run(work, READ, READ_TOO, lane_rate=6.0).end == pytest.approx(2.4)


def test_tasks_on_other_roofs_do_not_slow_each_other() -> None:
    work = {READ: disk("disk0", 10), BESIDE: Work({"cpu_flops": 10}, 1)}
    assert [span.end for span in run(work, READ, BESIDE).spans] == pytest.approx([1.0, 1.0])


def test_efficiency_and_the_cost_of_a_task_stretch_it() -> None:
    work = {USE: Work({"cpu_flops": 10}, 4)}
    options = {"efficiency": {"expert": ((4.0, 0.5),)}, "task_seconds": 0.25}
    assert run(work, USE, **options).end == pytest.approx(2.25)


def test_attention_costs_its_call_as_well() -> None:
    work = {BESIDE: Work({"cpu_flops": 10}, 4), USE: Work({"cpu_flops": 10}, 4)}
    options = {"efficiency": {"attn": ((4.0, 0.5),)}, "attention_seconds": 0.5}
    assert run(work, BESIDE, USE, **options).end == pytest.approx(2.5 + 1.0)


def test_host_work_counts_rows() -> None:
    assert run({USE: Work({"host": 8}, 8)}, USE, row_seconds=0.5).end == pytest.approx(4.0)


def test_waits_hold_also_for_tasks_that_take_no_time() -> None:
    trace = run({READ: disk("disk0", 10), USE: Work({}, 0), BESIDE: Work({}, 0)}, READ, BESIDE, USE)
    assert [(s.start, s.end) for s in trace.spans] == [(0, 1), (0, 0), (1, 1)]


def test_time_goes_on_from_sweep_to_sweep_without_a_drain() -> None:
    """The second read runs beside the first sweep's long last task."""
    work = {READ: disk("disk0", 10), USE: Work({}, 0), BESIDE: Work({"cpu_flops": 50}, 1)}
    machine = Virtual(
        lambda task, sweep: work[task],
        Hardware("test", {"disk": 10.0, "cpu_flops": 10.0}, task_seconds=0.0),
    )
    schedule = Schedule("test", (READ, USE, BESIDE), {})
    first, second = machine.append(schedule, 1), machine.append(schedule, 2)
    assert first.wait().end == machine.now == pytest.approx(6.0)
    trace = second.wait()
    assert trace.spans[0].end == pytest.approx(2.0)
    assert trace.end == pytest.approx(11.0)


def test_cancel_forgets_and_the_clock_goes_on() -> None:
    machine = Virtual(lambda task, sweep: Work({"disk": 10}, 1), Hardware("test", {"disk": 10.0}))
    schedule = Schedule("test", (READ, USE), {})
    machine.append(schedule, None).wait()
    dropped, now = machine.append(schedule, None), machine.now
    machine.close()
    with pytest.raises(Cancelled):
        dropped.wait()
    assert machine.append(schedule, None).wait().start == now


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1.0), max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_speeds_are_max_min_fair(demands: list[dict[str, float]]) -> None:
    """Feasible; and whoever is below full speed stands at a full roof, among its fastest."""
    speeds = fair_speeds(demands)
    used = {
        roof: sum(s * d.get(roof, 0) for s, d in zip(speeds, demands, strict=True))
        for roof in "abcd"
    }
    assert all(total <= 1 + 1e-9 for total in used.values())
    for speed, demand in zip(speeds, demands, strict=True):
        full = [roof for roof in demand if used[roof] > 1 - 1e-9]
        fastest = {
            roof: max(s for s, d in zip(speeds, demands, strict=True) if roof in d) for roof in full
        }
        assert speed == 1 or any(fastest[roof] <= speed + 1e-9 for roof in full)


def test_tens_of_thousands_of_tasks_a_second() -> None:
    """A fifth of 20,000, to pass on a slow machine: quadratic costs are what it would catch."""
    tasks = (READ, READ_TOO, USE, BESIDE) * 1000
    machine = Virtual(
        lambda task, sweep: Work({"disk": 1.0, "cpu_flops": 1.0}, 1),
        Hardware("test", {"disk": 10.0, "cpu_flops": 10.0}),
    )
    start = time.process_time()
    machine.append(Schedule("test", tasks, {}), None).wait()
    assert len(tasks) / (time.process_time() - start) > 4_000
