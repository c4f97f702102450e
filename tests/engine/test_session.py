"""A plan made real: its memory, its resident pages, and what happens when that fails."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from headrace.engine.session import KEPT_TASKS, Session, _Schedules
from headrace.errors import BudgetError, StorageError
from headrace.planner.memory_map import memory_map
from headrace.schedule.placement import streamed_pages
from headrace.schedule.task import Op

from .engines import (
    PROMPTS,
    answers_of,
    greedy,
    lane_threads,
    least_memory,
    open_llm,
    policy_of,
    session_of,
    token_ids,
)


def test_the_arena_is_used_to_the_last_byte_that_was_planned(mixtral, checkpoint_of):
    for folder in (mixtral, checkpoint_of("llama-gqa")):
        with open_llm(folder, least_memory(folder) * 5 // 4) as llm:
            for changes in ({}, {"max_seqs": 5, "micro_batches": 3}, {"kv_dtype": "f16"}):
                policy = replace(policy_of(llm), **changes)
                loaded = llm.loaded
                planned = memory_map(loaded.model, loaded.pages, policy, loaded.page_bytes)
                with session_of(llm, **changes) as session:
                    assert session.arena.used == planned.arena_bytes


def test_resident_pages_are_loaded_once_with_progress(mixtral):
    with open_llm(mixtral) as llm:
        plan, seen = llm.plan(policy_workload()), []
        before = llm.loaded.reader.bytes_read
        session = Session(
            llm.loaded,
            plan.policy,
            plan.memory.arena_bytes,
            iter(range(9)).__next__,
            context=256,
            on_load=seen.append,
        )
        assert sum(seen) == session.loaded_bytes == llm.loaded.reader.bytes_read - before
        assert len(seen) == len(plan.policy.resident)
        assert session.load_seconds == 1
        session.close()


def policy_workload():
    from .engines import workload

    return workload(PROMPTS[:2], 2)


def test_too_small_an_arena_is_refused_and_nothing_is_left_behind(mixtral):
    before = lane_threads()
    with open_llm(mixtral) as llm:
        plan = llm.plan(policy_workload())
        with pytest.raises(BudgetError, match="tier host cannot hold"):
            Session(llm.loaded, plan.policy, 4096, llm.clock, context=256)
    assert lane_threads() == before


def test_a_checkpoint_cut_short_after_it_was_opened_is_a_storage_error(mixtral, tmp_path):
    folder = shutil.copytree(mixtral, tmp_path / "m")
    with open_llm(folder) as llm:
        policy_of(llm)
        (weights,) = folder.glob("*.safetensors")
        with weights.open("r+b") as file:
            file.truncate(file.seek(0, 2) // 2)
        with pytest.raises(StorageError, match=r"model.*ends early"):
            llm.generate(PROMPTS[:1], greedy(1))


def test_schedules_are_made_once_per_name_and_place_in_the_ring(mixtral):
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        policy = replace(policy_of(llm), ring_slots=5)
        schedules = _Schedules(
            llm.loaded, policy, lambda rows: "stream" if rows > 3 else "on_demand"
        )
        first = [schedules(9) for _ in range(10)]
        assert {s.name for s in first} == {"stream"}
        assert len({id(s) for s in first}) <= 5
        assert schedules(1).name == "on_demand"
        kept = schedules._generate.cache_info().maxsize
        assert kept * len(first[0].tasks) <= 2 * KEPT_TASKS


@pytest.mark.parametrize("kept_tasks", [KEPT_TASKS, 0])
def test_a_list_goes_on_in_the_ring_where_the_one_before_ended(mixtral, monkeypatch, kept_tasks):
    monkeypatch.setattr("headrace.engine.session.KEPT_TASKS", kept_tasks)
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        experts = sorted(p.id for p in llm.loaded.pages if p.expert is not None)
        others = policy_of(llm).resident.difference(experts)
        policy = replace(policy_of(llm), resident=others.union(experts[:3]))
        streamed = len(streamed_pages(llm.loaded.pages, policy))
        ring = next(n for n in (5, 7, 9) if streamed % n)  # else it would always begin at 0
        schedules = _Schedules(
            llm.loaded,
            replace(policy, ring_slots=ring),
            lambda rows: "stream" if rows > 3 else "on_demand",
        )
        slots: list[int] = []
        for number in range(12):
            if number == 7:  # another expert stays
                schedules.keep(others.union(experts[1:4]))
            reads = [task for task in schedules(9 * (number % 3)).tasks if task.op is Op.READ_PAGE]
            slots += [b.index for task in reads for b in task.writes if b.name == "slot"]
        assert slots == [i % ring for i in range(12 * streamed)]


def test_micro_batches_change_no_token(mixtral):
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        policy_of(llm)
        tokens = []
        for count in (1, 2, 5):
            with session_of(llm, schedule="stream", max_seqs=6, micro_batches=count) as session:
                answers = answers_of(session)
                tokens.append([token_ids([answers[f"p{i}"]]) for i in range(len(PROMPTS))])
        assert tokens[0] == tokens[1] == tokens[2]
