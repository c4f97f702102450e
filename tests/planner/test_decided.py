"""What the batcher decides depends on limits only, and adds up to the job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.planner.decided import Decisions
from headrace.planner.grid import Grid
from headrace.planner.sweeps import Load
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

POLICY = Policy("cgopipe", 200, 60, micro_batches=4, kv_blocks=600, compute="device")
JOB = Workload(
    tuple(20 + i % 50 for i in range(300)), tuple(5 + i * 7 % 60 for i in range(300)), assumed=False
)


def test_policies_of_equal_limits_share_their_sweeps():
    decisions = Decisions()
    first = decisions.of(POLICY, JOB, 10**9)
    other = replace(POLICY, schedule="two_group", micro_batches=2, resident=frozenset((1, 2)))
    assert decisions.of(other, JOB, 10**9) is first
    assert decisions.of(replace(POLICY, max_seqs=50), JOB, 10**9) is not first
    assert decisions.of(POLICY, replace(JOB, assumed=True), 10**9) is not first


def test_sweeps_add_up_to_the_job():
    found = Decisions().of(POLICY, JOB, 10**9)
    assert found.drawn[-1] == JOB.gen_tokens
    assert sum(found.first) == JOB.requests
    assert found.part is JOB
    assert found.slices == 1
    # rounded to 3 %; the first token of each is drawn by its prompt's last rows
    rows = sum(load.rows for load in found.loads)
    wanted = JOB.prompt_tokens + JOB.gen_tokens - JOB.requests
    assert rows == pytest.approx(wanted, rel=0.03)


def test_a_slice_stands_for_all_of_the_rows():
    whole = Decisions().of(POLICY, JOB, 10**9)
    thin = Decisions().of(POLICY, JOB, JOB.gen_tokens // 3)
    assert thin.slices > 1
    assert len(thin.loads) == pytest.approx(len(whole.loads), rel=0.1)
    rows = [sum(load.rows for load in found.loads) for found in (whole, thin)]
    assert rows[1] == pytest.approx(rows[0], rel=0.1)


@pytest.mark.parametrize("load", [Load(17, 17 * 23), Load(13, 13 * 41, 37, 29), Load(0, 0, 55, 30)])
@pytest.mark.parametrize("grid", [Grid(2, 4), Grid(4, 2), Grid(4, 4)])
def test_points_of_the_grid_surround_a_load(load, grid):
    points = list(grid.around(load))
    assert sum(weight for _, weight in points) == pytest.approx(1.0)
    loads = [(grid.load_at(point), weight) for point, weight in points]
    assert sum(found.rows * weight for found, weight in loads) == pytest.approx(load.rows)
    assert min(found.rows for found, _ in loads) <= load.rows
    assert max(found.rows for found, _ in loads) >= load.rows
