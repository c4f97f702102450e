"""A batch job through the engine: lines in, durable lines out, and what it took."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from headrace.engine.answers import Answered, Prompt, Refused
from headrace.engine.engine import Event, Stop, SweepEnd, never
from headrace.engine.jobs import BAD_GROUP, Job, Result
from headrace.engine.lines import JobLine
from headrace.engine.llm import LLM
from headrace.engine.prompts import workload_of
from headrace.engine.record import Record
from headrace.engine.summary import RunSummary, summarise
from headrace.engine.timeline import planned_traces
from headrace.errors import HeadraceError, LineError, ParameterError
from headrace.machines.trace import write_chrome_trace
from headrace.planner.plan import Plan
from headrace.planner.plan_file import PlanFile
from headrace.planner.prefixes import prefix_tokens_shared
from headrace.specs.workload import Workload

SAMPLED_LINES = 1000
"""Lines whose lengths are looked at before a job; longer files are scaled up from these."""


log = logging.getLogger("headrace.batch")


@dataclass(frozen=True)
class Progress:
    """Where a job stands, after each sweep."""

    done: int
    failed: int
    total: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float


@dataclass(frozen=True)
class JobShape:
    """What a job looks like before it runs. ``shared_prefix_tokens`` counts prompt tokens that
    repeat the beginning of an earlier prompt, of the ``sampled`` lines looked at."""

    workload: Workload
    shared_prefix_tokens: int
    sampled: int


def plan_job(
    llm: LLM, job: Job, asked: tuple[PlanFile, str] | None = None
) -> tuple[Plan, JobShape]:
    """Plan what is left of ``job``; the plan stored with its output is kept if it can be.

    ``asked``, a plan file and its name, is followed as it stands instead, or refused.
    """
    shape = job_shape(llm, job)
    # Only lines at fault are left: they need no sweep, but their error lines are due.
    workload = shape.workload if shape.workload.requests else Workload.uniform(1, 1, 1)
    if asked is not None:
        return llm.follow(*asked, workload), shape
    return llm.plan(workload, (job.plan or {}).get("kept")), shape


def store_plan(llm: LLM, job: Job, shown: Mapping[str, Any]) -> None:
    """Keep the plan in force with the output, beside what people read of it."""
    job.store_plan({**shown, "kept": llm.stored_plan()})


def job_shape(llm: LLM, job: Job) -> JobShape:
    """Lengths of the pending lines; lines at fault do not count."""
    lines = (line for line in job.scan() if isinstance(line, JobLine))
    prompts = _runnable(llm, islice(lines, SAMPLED_LINES))
    shared = prefix_tokens_shared([p.tokens for p in prompts])
    workload = workload_of(prompts, llm.context)
    if prompts and job.pending > SAMPLED_LINES:
        longest = _longest_beyond(llm, lines, prompts)
        workload = _scaled(workload, job.pending / SAMPLED_LINES)
        workload = workload.joined(workload_of(longest, llm.context))
    return JobShape(workload, shared, len(prompts))


def run_job(
    llm: LLM,
    job: Job,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    trace_path: Path | None = None,
    stop: Stop = never,
) -> RunSummary:
    """Answer every pending line of ``job`` under the plan in force.

    Lines are durable, a sweep's worth at a time, before they count. On Ctrl-C, on what ``stop``
    raises (see ``Engine.run``) or on an error everything that was finished is written first. The
    trace holds planned beside measured lanes; a log line says if it could not be written.

    Raises StorageError when results cannot be written, or a file of the checkpoint was changed:
    answers that may come from other weights are not written.
    """
    record = llm.new_record(keep_traces=trace_path is not None)
    session = llm.session
    run = _Run(llm, job, record, progress, llm.clock())
    try:
        with closing(session.run(run.prompts(), record, stop=stop)) as events:
            for event in events:
                run.take(event)
    finally:
        for event in session.engine.unclaimed():
            run.take(event)
        run.flush()
    wall = llm.clock() - run.began
    if trace_path is not None:
        _write_trace(llm, record, trace_path)
    return summarise(llm, record, wall, run.workload(), run.counts())


@dataclass
class _Run:
    llm: LLM
    job: Job
    record: Record
    progress: Callable[[Progress], None]
    began: float
    results: list[Result] = field(default_factory=list)
    prompt_lens: list[int] = field(default_factory=list)
    gen_lens: list[int] = field(default_factory=list)

    def prompts(self) -> Iterator[Prompt]:
        """Pending lines as prompts; those that cannot run become results at once."""
        for line in self.job:
            prompt = _try_prompt(self.llm, line)
            if isinstance(prompt, Prompt):
                yield prompt
            else:
                self.results.append((line, prompt))
                if len(self.results) >= BAD_GROUP:  # no sweep may be near
                    self.flush()

    def take(self, event: Event) -> None:
        """Collect answers; write and report when a sweep has ended."""
        if isinstance(event, Answered):
            self.results.append((event.prompt.payload, event.output))
            for output in event.output.outputs:
                self.prompt_lens.append(len(event.prompt.tokens))
                self.gen_lens.append(len(output.token_ids))
        elif isinstance(event, Refused):
            self.results.append((event.prompt.payload, event.error))
        elif isinstance(event, SweepEnd):
            self.flush()
            self._report()

    def flush(self) -> None:
        """Make all that is finished durable. What Ctrl-C leaves undone, the next call does."""
        self.llm.loaded.reader.check_unchanged()
        self.job.write(self.results)
        self.results = []

    def workload(self) -> Workload:
        """The job with its realised lengths."""
        return Workload(tuple(self.prompt_lens), tuple(self.gen_lens), assumed=False)

    def counts(self) -> dict[str, int]:
        """Lines of the job."""
        return {"lines": self.job.total, "done": self.job.done, "failed": self.job.failed}

    def _report(self) -> None:
        counters = self.llm.session.batcher.counters.since(self.record.before)
        self.progress(
            Progress(
                done=self.job.done,
                failed=self.job.failed,
                total=self.job.total,
                prompt_tokens=counters.prompt_tokens,
                generated_tokens=counters.sampled_tokens,
                seconds=self.llm.clock() - self.began,
            )
        )


def _write_trace(llm: LLM, record: Record, path: Path) -> None:
    """The answers are safe by now: a trace that cannot be written costs a warning."""
    try:
        llm.faults("trace.write")
        planned = planned_traces(record, llm.hardware)
        with path.open("w", encoding="utf-8") as file:
            write_chrome_trace(file, record.traces, planned)
    except OSError as error:
        log.warning("the trace %s could not be written: %s", path, error.strerror or error)


def _try_prompt(llm: LLM, line: JobLine) -> Prompt | HeadraceError:
    """The line tokenised, or what is wrong with it."""
    try:
        text = line.messages if line.prompt is None else line.prompt
        prompt = Prompt(line.key, llm.encode(text or ""), line.params, payload=line)
        llm.check(prompt)
    except (LineError, ParameterError) as error:
        return error
    return prompt


def _runnable(llm: LLM, lines: Iterable[JobLine]) -> list[Prompt]:
    prompts = (_try_prompt(llm, line) for line in lines)
    return [p for p in prompts if isinstance(p, Prompt)]


def _longest_beyond(llm: LLM, lines: Iterable[JobLine], sampled: list[Prompt]) -> list[Prompt]:
    """The prompt, if any, that can grow longer than all ``sampled`` and than the rest of
    ``lines``: a plan must hold it. Only lines are tokenised that look long enough, at no more
    tokens a character than any of the sample has."""
    longest, found = workload_of(sampled, llm.context).longest, []
    density = max(len(p.tokens) / max(1, _characters(p.payload)) for p in sampled)
    for line in lines:
        most = line.params.max_tokens or llm.context
        known = len(line.prompt) if isinstance(line.prompt, tuple) else density * _characters(line)
        if known + most <= longest:
            continue
        for prompt in _runnable(llm, [line]):
            length = workload_of([prompt], llm.context).longest
            if length > longest:
                longest, found = length, [prompt]
    return found


def _characters(line: JobLine) -> int:
    if line.messages is not None:
        return sum(len(str(message["content"])) for message in line.messages)
    return len(line.prompt or "")


def _scaled(workload: Workload, factor: float) -> Workload:
    """The sample repeated until it is as long as the job."""
    count = int(workload.requests * factor)
    turns = range(count)
    size = workload.requests

    def repeated(lengths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(lengths[i % size] for i in turns)

    return Workload(
        repeated(workload.prompt_lens),
        repeated(workload.gen_lens),
        workload.assumed,
        repeated(workload.limits),
    )
