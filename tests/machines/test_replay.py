"""Scores: the same times as the virtual machine, whose fast version they are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ScheduleError
from headrace.machines.replay import Cost, Score
from headrace.machines.virtual import Virtual
from headrace.schedule.task import Buffer, Op, Task
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware

ROOFS = ("cpu_flops", "dram", "gpu_flops")
HARDWARE = Hardware("test", {"cpu_flops": 10.0, "dram": 5.0, "gpu_flops": 20.0}, task_seconds=0.125)


def works(seed: int, task: Task) -> Work:
    """Amounts that differ by op and layer, some of them none."""
    number = seed + 7 * list(Op).index(task.op) + 3 * (task.layer or 0)
    return Work({roof: (number * (i + 2)) % 5 * 1.0 for i, roof in enumerate(ROOFS)}, 1)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_a_score_ends_every_task_when_the_virtual_machine_does(case: Case, seed: int) -> None:
    schedules = case.schedules()
    machine = Virtual(lambda task, sweep: works(seed, task), HARDWARE)
    tickets = [machine.append(schedule, None) for schedule in schedules]
    wanted = [span.end for ticket in tickets for span in ticket.wait().spans]

    lists = [schedule.tasks for schedule in schedules]
    score = Score(lists, lambda task: (task.op, task.layer))
    costs = {}
    for task in score.tasks:
        roofs = works(seed, task).seconds(HARDWARE)
        costs[task.op, task.layer] = Cost(max(roofs.values(), default=0.0) + 0.125, roofs)
    assert score.play(costs) == pytest.approx(wanted)
    assert score.lasts == [
        sum(len(s.tasks) for s in schedules[: i + 1]) for i in range(len(schedules))
    ]


def test_what_stands_behind_the_wanted_sweeps_runs_in_their_tail_only() -> None:
    a, b = Task(Op.EXPERT, "cpu", (), (Buffer("a"),)), Task(Op.READ_PAGE, "disk0", (), ())
    score = Score([(a, b)] * 3, lambda task: task.op, most_of_last=1)
    costs = {Op.EXPERT: Cost(1.0, {}), Op.READ_PAGE: Cost(0.25, {})}
    assert score.play(costs, 1) == [1.0, 0.25, 0.0, 0.5, 0.0]
    assert score.play(costs, 2) == [1.0, 0.25, 2.0, 0.5, 0.0]
    assert score.play(costs) == [1.0, 0.25, 2.0, 0.5, 3.0]


def test_tasks_without_cost_end_at_once_and_free_others() -> None:
    slot = Buffer("slot")
    chain = [Task(Op.READ_PAGE, "disk0", (), (slot,)), Task(Op.EXPERT, "cpu", (slot,), (slot,))]
    score = Score([chain] * 3, lambda task: task.op)
    ends = score.play({Op.READ_PAGE: Cost(0.0, {}), Op.EXPERT: Cost(2.0, {"dram": 2.0})})
    assert ends == [0.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert all(a <= b for a, b in pairwise(ends))


def test_a_list_cut_so_that_it_waits_for_itself_is_refused() -> None:
    score = Score([[Task(Op.EXPERT, "cpu", (), ())]], lambda task: task.op)
    score.lasts[-1] = 2  # one more than there are
    with pytest.raises(ScheduleError, match="waits for itself"):
        score.play({Op.EXPERT: Cost(1.0, {})})
