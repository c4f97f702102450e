"""``bench throughput``: synthetic prompts through the engine, with and without overlap."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.cli.engine import open_llm
from headrace.cli.overlap import Summary, steady_rounds, throughput_report
from headrace.cli.plan_view import print_plan
from headrace.cli.progress import show_progress
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.engine.answers import Prompt
    from headrace.engine.llm import LLM
    from headrace.engine.record import Record
    from headrace.planner.plan import Plan

RATE_BYTES = 256_000_000
"""How much is read to see whether the disk still is as fast as before."""


@dataclass(frozen=True)
class Load:
    """A checkpoint and a batch of synthetic prompts, token ids drawn from ``seed``."""

    model: str
    batch: int
    prompt_len: int
    gen_len: int
    seed: int = 0

    @property
    def workload(self) -> Workload:
        """The same in lengths; they are known, every sequence runs to its end."""
        return Workload.uniform(self.batch, self.prompt_len, self.gen_len)

    def prompts(self, vocab: int) -> list[Prompt]:
        """The prompts: greedy, no early end."""
        from headrace.engine.answers import Prompt

        draw = random.Random(self.seed)
        params = SamplingParams(temperature=0, max_tokens=self.gen_len, ignore_eos=True)
        return [
            Prompt(str(i), tuple(draw.randrange(vocab) for _ in range(self.prompt_len)), params)
            for i in range(self.batch)
        ]


@dataclass(frozen=True)
class _Now:
    """A ``progress.Snapshot``."""

    done: int
    total: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    failed: int = 0


def run_throughput(
    load: Load,
    *,
    settings: Mapping[str, Any],
    repeats: int,
    compare: bool,
    trace: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Play the load ``repeats`` times, each time beside a one_by_one run of the same policy when
    something streams, and report. Plan and progress go to ``console``."""
    from headrace.cli.trace_files import check_trace

    check_trace(trace)
    with open_llm(load.model, seed=load.seed, **settings) as llm:
        plan = llm.plan(load.workload)
        print_plan(plan, console)
        serial = one_by_one(llm, plan, load.workload)
        both = compare and plan.policy.schedule in ("stream", "on_demand")

        def play() -> tuple[Summary, Summary | None]:
            first = play_load(llm, plan, load, console, trace)
            return first, play_load(llm, serial, load, console, None) if both else None

        rate = disk_rate(llm) if both else None
        report = throughput_report(*steady_rounds(play, rate, repeats))
    shape = {"batch": load.batch, "prompt_len": load.prompt_len, "gen_len": load.gen_len}
    return {"model": load.model, **shape, **report}


def one_by_one(llm: LLM, plan: Plan, workload: Workload) -> Plan:
    """The same policy without overlap, and what that is predicted to take."""
    from headrace.planner.simulate import predict

    policy = replace(plan.policy, schedule="one_by_one")
    model, pages = llm.loaded.model, llm.loaded.pages
    return replace(
        plan,
        policy=policy,
        prediction=predict(model, pages, policy, llm.hardware, workload),
        on_demand_rows=0,
    )


def play_load(llm: LLM, plan: Plan, load: Load, console: Console, trace: Path | None) -> Summary:
    """One run under ``plan``, memory taken anew; returns the figures of its summary."""
    from headrace.engine.answers import Answered
    from headrace.engine.summary import summarise

    llm.use(plan)
    record = llm.new_record(keep_traces=trace is not None)
    counters = llm.session.batcher.counters
    began = llm.clock()
    done = 0
    tokens = load.batch * (load.prompt_len + load.gen_len)
    with show_progress(console, plan.prediction.seconds, tokens) as report:
        for event in llm.events(load.prompts(llm.loaded.model.vocab), record):
            done += isinstance(event, Answered)
            seconds = llm.clock() - began
            prefilled, drawn = counters.prompt_tokens, counters.sampled_tokens
            report(_Now(done, load.batch, prefilled, drawn, seconds))
    wall = llm.clock() - began
    if trace is not None:
        write_trace(llm, record, trace)
    lines = {"lines": load.batch, "done": done, "failed": load.batch - done}
    return summarise(llm, record, wall, load.workload, lines).to_dict()


def write_trace(llm: LLM, record: Record, trace: Path) -> None:
    """Chrome trace and picture: planned lanes above measured ones."""
    from headrace.cli.trace_files import draw_trace
    from headrace.engine.timeline import planned_traces
    from headrace.machines.trace import write_chrome_trace

    with trace.open("w", encoding="utf-8") as file:
        write_chrome_trace(file, record.traces, planned_traces(record, llm.hardware))
    draw_trace(trace, f"{llm.current_plan.policy.schedule}: predicted above measured")


def disk_rate(llm: LLM) -> Callable[[], float]:
    """A function that reads part of the checkpoint and returns bytes/s, two in flight."""
    from headrace.memory.disk import DiskReader
    from headrace.memory.disk_rate import measure_rate

    checkpoint = llm.loaded.checkpoint
    nbytes = min(RATE_BYTES, checkpoint.total_bytes)

    def measured() -> float:
        reader = DiskReader(checkpoint.files)
        try:
            return measure_rate(reader, nbytes, 2, perf_counter).bytes_per_second
        finally:
            reader.close()

    return measured
