"""A sweep played in small takes as long as the whole list, whatever the policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.planner.candidates import Situation, fitted
from headrace.planner.host_sketch import HostSketch
from headrace.planner.memory_map import memory_map
from headrace.planner.played import SteadyPlay
from headrace.planner.sweeps import Load
from headrace.planner.thinning import part_of, rest_seconds, sample
from headrace.schedule.tally import Kinds
from headrace.specs.model import ModelSpec, SharedExpert
from headrace.specs.pages import page_layout
from headrace.specs.workload import Workload

from .problems import machine

DEEP = ModelSpec(
    "mixtral", layers=14, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, vocab=1000,
    experts=16, top_k=2,
)  # fmt: skip
DENSE_FIRST = replace(
    DEEP,
    dense_layers=3,
    dense_width=2048,
    shared=SharedExpert(512),
    experts=8,
    tied_embeddings=True,
)
JOB = Workload.uniform(200, 40, 24)


@pytest.mark.parametrize(("model", "error"), [(DEEP, 0.06), (DENSE_FIRST, 0.1)])
@pytest.mark.parametrize("schedule", ["stream", "one_by_one", "on_demand"])
@pytest.mark.parametrize("disk", [0.2e9, 2e9])
@pytest.mark.parametrize("seqs", [2, 64])
def test_a_sketch_takes_as_long_as_the_sweep(model, error, schedule, disk, seqs):
    pages = page_layout(model)
    budget = 100_000_000
    at = Situation(model, pages, None, machine(disk), JOB, budget)
    policy = fitted(at, seqs)
    assert policy is not None
    assert policy.slot_bytes
    policy = replace(policy, schedule=schedule)
    load = Load(seqs, seqs * 50, 32, 40, seqs)
    whole = SteadyPlay(model, pages, policy, machine(disk)).seconds(load)
    small = HostSketch(at.kinds, policy, machine(disk)).play(load)
    assert small == pytest.approx(whole, rel=error)


@pytest.mark.parametrize("slots", [2, 6])
@pytest.mark.parametrize("rows", [1, 64])
def test_one_by_one_takes_what_its_tasks_take_however_deep_the_ring(slots, rows):
    """Of many layers, whose reads for the last ones lie among the tasks of the first."""
    model = ModelSpec(
        "llama", layers=16, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn_width=2048, vocab=1000
    )
    pages = page_layout(model)
    at = Situation(model, pages, None, machine(1e9), JOB, 24_000_000)
    policy = fitted(at, 4)
    assert policy is not None
    policy = replace(policy, schedule="one_by_one", ring_slots=slots)
    load = Load(4, 200, rows, rows, 4)
    whole = SteadyPlay(model, pages, policy, machine(1e9)).seconds(load)
    assert HostSketch(at.kinds, policy, machine(1e9)).play(load) == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("budget", [40_000_000, 60_000_000, 100_000_000, 10**9])
def test_weights_counted_by_kind_take_what_the_memory_map_says(budget):
    pages = page_layout(DENSE_FIRST)
    at = Situation(DENSE_FIRST, pages, None, machine(1e9), JOB, budget)
    for seqs in (1, 10, 100):
        policy = fitted(at, seqs)
        if policy is not None:
            assert at.map_of(policy) == memory_map(DENSE_FIRST, pages, policy, None, budget)
            assert at.kinds.all == Kinds(DENSE_FIRST, pages).all


def test_a_part_of_a_job_has_its_mean_lengths():
    prompts = tuple(1 + i * 37 % 500 for i in range(2000))
    limits = tuple(1 + i * 91 % 300 for i in range(2000))
    job = Workload.guessed(prompts, limits)
    part = sample(job, 300)
    assert part.gen_tokens / 300 == pytest.approx(job.gen_tokens / 2000, rel=0.01)
    assert part.prompt_tokens / 300 == pytest.approx(job.prompt_tokens / 2000, rel=0.05)
    assert part_of(job, 4, 10_000).requests < 2000


def test_the_rest_of_a_job_goes_on_as_its_middle():
    drawn, ends = [10 * i for i in range(1, 101)], [2.0 * i for i in range(1, 101)]
    assert rest_seconds(drawn, ends, 500) == pytest.approx(100.0)
    late = [50.0, *(seconds + 50.0 for seconds in ends)]
    assert rest_seconds([0, *drawn], late, 500) == pytest.approx(100.0)
    assert rest_seconds(drawn, ends, 0) == 0.0


def test_a_short_job_is_played_whole():
    short, few = Workload.uniform(1000, 10, 10), Workload.uniform(100, 10, 1000)
    assert part_of(short, 4, 10_000) is short
    assert part_of(few, 16, 10_000) is few


def test_reading_on_demand_is_played_for_models_whose_first_layers_are_dense():
    pages = page_layout(DENSE_FIRST)
    at = Situation(DENSE_FIRST, pages, None, machine(1e8), JOB, 100_000_000)
    policy = fitted(at, 2)
    assert policy is not None
    overlap = at.overlap_of(replace(policy, schedule="on_demand"))
    assert 1.0 <= overlap(1) < 3.0
