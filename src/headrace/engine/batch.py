"""A batch job through the engine: lines in, durable lines out, and what it took."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from headrace.engine.answers import Answered, Prompt
from headrace.engine.engine import Refused, SweepEnd
from headrace.engine.jobs import Job, Result
from headrace.engine.lines import BadLine, JobLine
from headrace.engine.llm import LLM, workload_of
from headrace.engine.sampler import check_params
from headrace.engine.summary import RunSummary, summarise
from headrace.engine.timeline import planned_traces
from headrace.errors import HeadraceError, LineError, ParameterError
from headrace.machines.trace import chrome_trace
from headrace.planner.prefixes import prefix_tokens_shared
from headrace.specs.workload import Workload

SAMPLED_LINES = 1000
"""Lines whose lengths are looked at before a job; longer files are scaled up from these."""


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


def job_shape(llm: LLM, job: Job) -> JobShape:
    """Lengths of the pending lines; lines at fault do not count."""
    lines = [x for x in islice(job.scan(), SAMPLED_LINES) if isinstance(x, JobLine)]
    prompts = [p for p in (_try_prompt(llm, line) for line in lines) if isinstance(p, Prompt)]
    workload = workload_of(prompts, llm.context)
    if prompts and job.pending > SAMPLED_LINES:
        workload = _scaled(workload, job.pending / SAMPLED_LINES)
    shared = prefix_tokens_shared([p.tokens for p in prompts])
    return JobShape(workload, shared, len(prompts))


def run_job(
    llm: LLM,
    job: Job,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    trace_path: Path | None = None,
) -> RunSummary:
    """Answer every pending line of ``job`` under the plan in force.

    Lines are durable, a sweep's worth at a time, before they count. On Ctrl-C or an error
    everything that was finished is written first. The trace holds planned beside measured lanes.
    """
    run = _Run(llm, job, progress)
    record = llm.new_record(keep_traces=trace_path is not None)
    session = llm.session
    run.began = llm.clock()
    try:
        for event in session.run(run.prompts(), record):
            run.take(event)
    finally:
        run.flush()
    wall = llm.clock() - run.began
    if trace_path is not None:
        planned = planned_traces(record, llm.hardware)
        trace_path.write_text(json.dumps(chrome_trace(record.traces, planned)))
    return summarise(llm, record, wall, run.workload(), run.counts())


@dataclass
class _Run:
    llm: LLM
    job: Job
    progress: Callable[[Progress], None]
    began: float = 0.0
    results: list[Result] = field(default_factory=list)
    prompt_lens: list[int] = field(default_factory=list)
    gen_lens: list[int] = field(default_factory=list)
    generated: int = 0

    def prompts(self) -> Iterator[Prompt]:
        """Pending lines as prompts; those that cannot run become results at once."""
        for line in self.job:
            prompt = _try_prompt(self.llm, line)
            if isinstance(prompt, Prompt):
                yield prompt
            else:
                self.results.append((line, prompt))

    def take(self, event: object) -> None:
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
        """Make all that is finished durable."""
        results, self.results = self.results, []
        self.job.write(results)

    def workload(self) -> Workload:
        """The job with its realised lengths."""
        return Workload(tuple(self.prompt_lens), tuple(self.gen_lens), assumed=False)

    def counts(self) -> dict[str, int]:
        """Lines of the job."""
        return {"lines": self.job.total, "done": self.job.done, "failed": self.job.failed}

    def _report(self) -> None:
        counters = self.llm.session.batcher.counters
        self.progress(
            Progress(
                done=self.job.done,
                failed=self.job.failed,
                total=self.job.total,
                prompt_tokens=counters.prefill_tokens,
                generated_tokens=counters.sampled_tokens,
                seconds=self.llm.clock() - self.began,
            )
        )


def _try_prompt(llm: LLM, line: JobLine | BadLine) -> Prompt | HeadraceError:
    """The line tokenised, or what is wrong with it."""
    if isinstance(line, BadLine):
        return line.error
    try:
        text = line.messages if line.prompt is None else line.prompt
        tokens = llm.encode(text)  # type: ignore[arg-type]
        check_params(line.params, llm.loaded.model.vocab, llm.tokenizer.eos_ids)
    except ParameterError as error:
        return LineError(error.message, expected=error.expected, got=error.got, hint=error.hint)
    except LineError as error:
        return error
    return Prompt(line.key, tokens, line.params, payload=line)


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
