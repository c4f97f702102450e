"""The machine measured through the engine's own bodies and reads; a few seconds, once."""

from __future__ import annotations

import time

import pytest

from headrace.engine.probe import ReadRate, measure_contention, measure_machine, usable_threads
from headrace.engine.rehearsal import LEAST_REPEATS, ROUNDS, Rehearsal
from headrace.errors import StorageError
from headrace.schedule.placement import streamed_pages

from .engines import PROMPTS, greedy, lane_threads, least_memory, open_llm, workload


def test_a_measured_machine_makes_a_plan_that_runs(mixtral):
    before = lane_threads()
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4) as llm:
        began = time.perf_counter()
        hardware = measure_machine(
            llm.loaded,
            time.perf_counter,
            threads=1,
            kernels="auto",
            kv_dtype="f32",
            capacity_bytes=123,
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


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("case", ["mixtral-e8", "llama-mha-tied-biases"])
def test_a_rehearsal_times_what_a_run_does(checkpoint_of, case, streams):
    with open_llm(checkpoint_of(case)) as llm:
        kept = Rehearsal(
            llm.loaded,
            time.perf_counter,
            streams=streams,
            room_bytes=1 << 30,
            threads=1,
            kv_dtype="f32",
            kernels="auto",
            activations="int8",
        )
        once = {one.load: len(one.tasks) for one in kept.play(0.0)}
        played = {one.load: one for one in kept.play(0.1)}
        assert kept.sample() == kept.policy.max_seqs
        kept.close()
    model = kept.model
    assert model.layers >= 2
    if streams:  # lists are made once, as in a long run
        streamed = streamed_pages(kept.table.pages, kept.policy)
        assert len(streamed) % kept.policy.ring_slots == 0
        assert kept._phase == 0
        assert {phase for _, phase in kept._schedules} == {0}
    expert = "expert" if streams else "moe"
    for load, rows in (("4 decodes", 4), ("64 decodes", 64), ("1 chunk of 64", 64)):
        sweeps = played[load].tasks
        assert once[load] == 1, "where there is no time for more"
        assert len(sweeps) >= ROUNDS * LEAST_REPEATS
        embeds = [sum(1 for t in sweep if t.op == "embed") for sweep in sweeps]
        assert embeds[:2] == [0, 1], "it waits for what follows the sweep before"
        for sweep in sweeps:
            experts = [t for t in sweep if t.op in (expert, "expert_up", "expert_down")]
            flops = sum(t.amounts["cpu_flops"] for t in experts)
            assert (
                flops == 2 * rows * model.top_k * 3 * model.hidden * model.ffn_width * model.layers
            )
            attended = [t for t in sweep if t.op == "attn"]
            assert len(attended) == model.layers
            assert all((t.rows > 1) == load.startswith("1 chunk") for t in attended)
        reads = played[load].read_bytes
        assert (reads > 0) == streams
        assert (played[load].read_seconds > 0) == streams
    for task in ("sample", "commit"):  # what a run does around the arithmetic
        assert [t.rows for t in played["4 decodes"].tasks[0] if t.op == task] == [4]
        assert not [t for t in played["1 chunk of 64"].tasks[0] if t.op == task and t.rows]
    alone = played.get("1 decodes, one_by_one")
    assert (alone is not None) == streams
    if alone is not None:  # nothing hides there what handing over to a lane takes
        assert {t.op for t in alone.tasks[0]} >= {"attn of one_by_one", "commit of one_by_one"}
        (reads,) = (task for task in alone.tasks[0] if task.op == "read_page of one_by_one")
        assert reads.seconds > alone.read_seconds > 0
    sweep = played["4 decodes"].tasks[0]
    between = [t.seconds for t in sweep if t.op == "between"]
    assert len(between) == model.layers * (3 if model.is_moe else 2)
    assert all(0 < seconds < 0.1 for seconds in between)
    passed = [t.seconds for t in played["1 decodes"].tasks[0] if t.op == "passed"]
    assert len(passed) == (streams and model.is_moe) * model.layers * (model.experts - model.top_k)


def test_threads_are_the_cores_this_process_may_use():
    assert usable_threads() >= 1


def test_a_read_that_fails_beside_arithmetic_is_no_contention_but_an_error(mixtral, monkeypatch):
    calls = []
    real = ReadRate.__call__

    def second_fails(self, depth):
        calls.append(depth)
        if len(calls) == 2:
            raise StorageError("reading failed")
        return real(self, depth)

    monkeypatch.setattr(ReadRate, "__call__", second_fails)
    with open_llm(mixtral) as llm, pytest.raises(StorageError):
        measure_contention(llm.loaded, time.perf_counter, 1, 0.02)


def test_contention_is_a_share_of_each_alone(mixtral):
    with open_llm(mixtral) as llm:
        found = measure_contention(llm.loaded, time.perf_counter, 1, 0.02)
    assert 0 < found.reads <= 1
    assert 0 < found.arithmetic <= 1
