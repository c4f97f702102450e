"""The machine measured through the engine's own bodies and reads; a few seconds, once."""

from __future__ import annotations

import time

import pytest

from headrace.engine.probe import _Bench, measure_machine, usable_threads
from headrace.schedule.task import Buffer, Op

from .engines import PROMPTS, greedy, lane_threads, least_memory, open_llm, workload


def test_a_measured_machine_makes_a_plan_that_runs(mixtral):
    before = lane_threads()
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4) as llm:
        began = time.perf_counter()
        hardware = measure_machine(
            llm.loaded, time.perf_counter, threads=1, kv_dtype="f32", capacity_bytes=123
        )
        assert time.perf_counter() - began < 30
        assert hardware.measured
        assert hardware.capacity == {"host": 123}
        assert {"cpu_flops", "dram", "disk", "host"} <= hardware.roofs.keys()
        assert all(rate > 0 for rate in hardware.roofs.values())
        assert 0 < hardware.lane_rate <= hardware.roofs["disk"]
        assert 0 < hardware.row_seconds < 0.1
        ops = {"pre_attn", "attn", "post_attn", "router", "expert", "moe", "logits"}
        assert ops <= hardware.efficiency.keys()
        for curve in hardware.efficiency.values():
            rows = [r for r, _ in curve]
            assert rows == sorted(rows)
            assert all(0 < share <= 1 for _, share in curve)
        llm._hardware = hardware
        plan = llm.plan(workload(tokens=2))
        assert plan.prediction.seconds > 0
        assert len(llm.generate(PROMPTS, greedy(2))) == len(PROMPTS)
    assert lane_threads() <= before


@pytest.mark.parametrize("case", ["mixtral-e8", "llama-mha-tied-biases"])
def test_each_op_is_timed_on_its_own_page_and_every_row_counts(checkpoint_of, case):
    with open_llm(checkpoint_of(case)) as llm:
        bench = _Bench(llm.loaded, threads=1, kv_dtype="f32")
        probes = bench.ops()
        probes["logits"].run(1)
        head = bench.workspace.view(Buffer("slot")).clone()
        probes["expert"].run(4)
        expert = bench.workspace.view(Buffer("slot"))
        assert not expert.equal(head), "the expert was multiplied with the head's weights"
        assert bench.filled == bench.tasks[Op.EXPERT].page
        for rows in (4, 64):
            amounts = probes["expert"].amounts(rows)
            model = bench.model
            assert amounts["cpu_flops"] == 2 * rows * 3 * model.hidden * model.ffn_width
        assert bench.sample() == bench.policy.max_seqs
        bench.close()


def test_threads_are_the_cores_this_process_may_use():
    assert usable_threads() >= 1
