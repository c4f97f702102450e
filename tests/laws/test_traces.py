"""The laws about time and memory: what machines trace, what the virtual one predicts."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from random import Random

import pytest
from cases import Case, cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import Sweep, Toy

from headrace.machines.machine import Views
from headrace.machines.orders import TaskGraph
from headrace.machines.threads import Threads
from headrace.machines.trace import SweepTrace
from headrace.machines.virtual import Virtual
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.lifetimes import lifetimes, peak_bytes
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Task
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import CPU_FLOPS, D2H, DISK, DRAM, GPU_FLOPS, H2D, HBM, Hardware

rates = st.floats(1e3, 1e9)
curves = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2).map(
    lambda e: ((1.0, e[0]), (64.0, e[1]))
)
machines = st.builds(
    Hardware,
    name=st.just("drawn"),
    roofs=st.fixed_dictionaries(
        dict.fromkeys((CPU_FLOPS, DRAM, DISK, GPU_FLOPS, HBM, H2D, D2H), rates)
    ),
    lane_rate=rates,
    efficiency=st.dictionaries(
        st.sampled_from([name for op in Op for name in (op.value, f"gpu.{op.value}")]), curves
    ),
    row_seconds=st.sampled_from((0.0, 50e-6)),
    token_seconds=st.sampled_from((0.0, 20e-6)),
    sequence_seconds=st.sampled_from((0.0, 10e-6)),
    task_seconds=st.sampled_from((0.0, 20e-6)),
)


@settings(max_examples=40, deadline=None)
@given(cases(), machines)
def test_law_2_nothing_beats_the_bound(case: Case, hardware: Hardware) -> None:
    model = WorkModel(case.model, case.pages, case.policy)
    sweeps = list(zip(case.schedules(), bindings(case), strict=True))
    traces = simulate(case, hardware)
    took = traces[-1].end - traces[0].start
    bounds = [model.bound_seconds(schedule, [binding], hardware) for schedule, binding in sweeps]
    assert max(bounds) <= took * (1 + 1e-9) + 1e-12
    whole = model.bound_seconds(sweeps[0][0], [binding for _, binding in sweeps], hardware)
    assert whole <= took * (1 + 1e-9) + 1e-12


@settings(max_examples=30, deadline=None)
@given(cases(), machines)
def test_law_3_holds_for_the_virtual_machine(case: Case, hardware: Hardware) -> None:
    check_trace(simulate(case, hardware))


@settings(max_examples=15, deadline=None)
@given(cases(max_layers=2, max_experts=6), st.integers(0, 99), st.booleans())
def test_law_3_holds_for_threads_of_any_pace(case: Case, seed: int, inline: bool) -> None:
    toy = Toy(case)
    random = Random(seed)

    def view(buffer: Buffer) -> object:
        if random.random() < 0.02:
            time.sleep(0.0005)
        return toy.memory[buffer]

    shared = {"host": "cpu", "rows": "cpu"} if inline else {}
    with Threads(toy.bodies, view, time.perf_counter, inline=shared) as threads:
        check_trace(toy.run(threads))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_law_4_lifetimes_take_what_the_sizes_promise(case: Case) -> None:
    schedules = case.schedules()
    sizes = buffer_sizes(case.model, case.pages, case.policy)
    touched = {buffer for schedule in schedules for buffer in lifetimes(schedule)}
    assert touched == {buffer for schedule in schedules for buffer in schedule.sizes}
    promised = dict.fromkeys((sizes[b].tier for b in touched), 0)
    for buffer in touched:
        promised[sizes[buffer].tier] += sizes[buffer].bytes
    assert peak_bytes(schedules) == promised
    assert promised["state"] == 0
    assert all(size.bytes % 64 == 0 for size in sizes.values())


@settings(max_examples=25, deadline=None)
@given(
    cases(
        schedules=(
            *("stream", "on_demand", "one_by_one", "device one_by_one"),
            *("device cgopipe", "device flexgen", "device two_group"),
        )
    ),
    machines,
)
def test_one_by_one_adds_up_and_overlap_never_loses(case: Case, hardware: Hardware) -> None:
    """With room on every roof for all lanes at once, the pipeline is no slower than its sum."""
    traces = simulate(case, hardware)
    busy = sum(span.end - span.start for trace in traces for span in trace.spans)
    took = traces[-1].end - traces[0].start
    if case.policy.schedule == "one_by_one":
        assert took == pytest.approx(busy, rel=1e-6, abs=1e-9)
    else:
        assert took <= busy * (1 + 1e-6) + 1e-9


@settings(max_examples=25, deadline=None)
@given(cases(schedules=("stream",)))
def test_the_seam_does_not_drain_the_disk(case: Case) -> None:
    """The next sweep's first page is read before this sweep ends, whatever is sampled."""
    assume(case.sweeps > 1)
    hardware = Hardware("even", {CPU_FLOPS: 1e6, DRAM: 1e9, DISK: 1e6}, row_seconds=1e-3)
    traces = simulate(case, hardware)
    for trace, following in itertools.pairwise(traces):
        reads = [s for s in following.spans if op_of(following, s.task) is Op.READ_PAGE]
        if reads:
            sample = next(s for s in trace.spans if op_of(trace, s.task) is Op.SAMPLE)
            assert min(s.start for s in reads) <= sample.start
        bind = next(s for s in following.spans if op_of(following, s.task) is Op.BIND)
        assert bind.start >= trace.spans[-1].end


@settings(max_examples=10, deadline=None)
@given(cases(schedules=("stream",), max_layers=2, max_experts=4))
def test_threads_read_the_next_sweep_before_this_one_samples(case: Case) -> None:
    """Sampling waits for that read here: were the seam drained, this would stand still."""
    reads = [
        [i for i, task in enumerate(schedule.tasks) if task.op is Op.READ_PAGE]
        for schedule in case.schedules()
    ]
    assume(case.sweeps > 1 and len(reads[0]) > 0 and case.policy.ring_slots > 1)
    toy, begun = Toy(case), threading.Semaphore(0)

    def read_page(task: Task, views: Views, sweep: Sweep) -> None:
        begun.release()
        toy.bodies[Op.READ_PAGE](task, views, sweep)

    def sample(task: Task, views: Views, sweep: Sweep) -> None:
        pages = len(reads[0]) + (not sampled)
        if len(sampled) < case.sweeps - 1:  # all of this sweep's reads, and one of the next
            assert all(begun.acquire(timeout=5) for _ in range(pages)), "the seam drained"
        sampled.append(sweep)
        toy.bodies[Op.SAMPLE](task, views, sweep)

    sampled: list[Sweep] = []
    bodies = {**toy.bodies, Op.READ_PAGE: read_page, Op.SAMPLE: sample}
    with Threads(bodies, toy.memory.get, time.perf_counter, inline={"host": "cpu"}) as threads:
        toy.run(threads)


def bindings(case: Case) -> list[Binding]:
    """The known part of every sweep of the case."""
    found, kv = [], [0] * len(case.prompts)
    for plan in case.plans():
        extents = []
        for mb in plan:
            for seq, rows in mb:
                kv[seq] += rows
            extents.append(tuple(Extent(rows, kv[seq]) for seq, rows in mb))
        samples = tuple(sum(kv[s] >= case.prompts[s][0] for s, _ in mb) for mb in plan)
        found.append(Binding(tuple(extents), samples))
    return found


def simulate(case: Case, hardware: Hardware) -> list[SweepTrace]:
    model = WorkModel(case.model, case.pages, case.policy)
    virtual = Virtual(model.work, hardware)
    tickets = [
        virtual.append(schedule, binding)
        for schedule, binding in zip(case.schedules(), bindings(case), strict=True)
    ]
    return [ticket.wait() for ticket in tickets]


def check_trace(traces: Sequence[SweepTrace]) -> None:
    """Law 3: spans of a lane in list order and apart, each after the ends it waits for."""
    graph = TaskGraph.of(trace.schedule for trace in traces)
    spans = [span for trace in traces for span in trace.spans]
    assert len(spans) == len(graph.tasks)
    assert all(span.start <= span.end for span in spans)
    for before, after in (*graph.lane_edges, *graph.waits):
        assert spans[before].end <= spans[after].start


def op_of(trace: SweepTrace, task: int) -> Op:
    return trace.schedule.tasks[task].op
