"""One batch job on an open engine: plan, run, picture."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.output import warn
from headrace.cli.plan_view import plan_dict, plan_text, print_plan
from headrace.cli.progress import show_progress
from headrace.errors import HeadraceError
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.engine.jobs import Job
    from headrace.engine.llm import LLM
    from headrace.engine.summary import RunSummary
    from headrace.planner.plan import Plan
    from headrace.planner.plan_file import PlanFile
    from headrace.planner.profile import Profile

LEAST_SECONDS = 20.0
"""Shorter runs say little about predictions: how they begin and end counts too much."""

log = logging.getLogger("headrace.run_batch")


@dataclass(frozen=True)
class BatchRun:
    """What ``run-batch`` was asked to do. ``console`` gets plan and progress; ``asked`` is a plan
    file, and its name, to follow."""

    llm: LLM
    model: str
    input: Path
    output: Path
    limit: int | None
    retry_errors: bool
    fresh: bool
    max_tokens: int
    console: Console
    asked: tuple[PlanFile, str] | None = None

    def dry_run(self) -> dict[str, Any]:
        """Print the plan for what is left to do; the output is not touched."""
        with self._untouched() as job:
            plan, _ = self._plan(job)
            return {"lines": job.total, "pending": job.pending, **plan_dict(plan)}

    def run(self, trace: Path | None) -> dict[str, Any]:
        """Print the plan, run the job, draw the trace; returns the summary."""
        from headrace.cli.interrupt import held
        from headrace.engine.batch import run_job, store_plan

        with self._open(self.output, self.retry_errors, self.fresh) as job:
            if not job.pending:
                return self._nothing_left(job)
            plan, workload = self._plan(job)
            store_plan(self.llm, job, plan_dict(plan))
            tokens = workload.prompt_tokens + workload.gen_tokens
            with (
                show_progress(self.console, plan.prediction.seconds, tokens) as progress,
                held() as stop,
            ):
                done = run_job(self.llm, job, progress=progress, trace_path=trace, stop=stop)
        self._remember(done)
        summary = done.to_dict()
        log.info("summary %s", summary)
        if trace is not None and trace.is_file():
            self._draw(trace)
        return summary

    def _remember(self, done: RunSummary) -> None:
        """Keep what ``verify`` needs, and how far the prediction was from the run. The answers
        are safe: what cannot be kept costs a warning."""
        from headrace.engine.runs import keep_run
        from headrace.planner.profile import ShapeCurves

        llm = self.llm
        streams = sum(llm.loaded.page_bytes.values()) > llm.budget
        model, hardware = llm.loaded.model, llm.hardware
        shape = ShapeCurves.of(model, llm.kv_dtype, streams, hardware, llm.activations)
        try:
            keep_run(self.output, done, shape)
            long = done.wall_seconds >= LEAST_SECONDS and done.predicted_after_seconds > 0
            if llm.profile is not None and long and llm.usual and not llm.follow_routing:
                residual = math.log(done.wall_seconds / done.predicted_after_seconds)
                self._add_residual(llm.profile, residual + done.predicted_bias)
        except (HeadraceError, OSError) as error:
            log.warning("the run was not recorded: %s", error)
            warn(f"the run was not recorded: {error}")

    def _add_residual(self, began_from: Profile, residual: float) -> None:
        """To the profile as it is now, if it still is the one that the run began from: a job of a
        night is not alone."""
        from headrace.engine.profiles import keep_profile, profile_path, read_profile

        path = profile_path(os.environ)
        now = read_profile(path)
        if now is not None and now.made == began_from.made:
            keep_profile(path, now.with_residuals([residual]))

    def _plan(self, job: Job) -> tuple[Plan, Workload]:
        """The plan, printed; with the workload that it is for."""
        from headrace.engine.batch import plan_job

        plan, shape = plan_job(self.llm, job, self.asked)
        print_plan(plan, self.console)
        for line in self._about(job, shape):
            self.console.print(f"note: {line}")
            log.info(line)
        log.info("plan\n%s", plan_text(plan))
        return plan, shape.workload

    def _about(self, job: Job, shape: Any) -> list[str]:
        lines = f"{job.pending} of {job.total} lines to do, in order of completion"
        cap = f"outputs end at {self.max_tokens} tokens where a line says nothing (--max-tokens)"
        shared = f"{shape.shared_prefix_tokens} prompt tokens repeat an earlier prompt's beginning"
        return [lines, cap, f"{shared} ({shape.sampled} lines looked at)"]

    def _draw(self, trace: Path) -> None:
        from headrace.cli.trace_files import draw_trace

        try:
            picture = draw_trace(trace, f"{self.input.name}: predicted above measured")
        except (OSError, ValueError) as error:  # a full disk: the answers are safe
            log.warning("no timeline: %s", error)
            warn(f"no timeline: {error}")
        else:
            self.console.print(f"timeline: {picture} ({trace} opens in Perfetto)")

    def _nothing_left(self, job: Job) -> dict[str, Any]:
        self.console.print(f"nothing left to do: {job.done} of {job.total} lines are done")
        return {"lines": job.total, "done": job.done, "failed": job.failed}

    def _open(self, output: Path, retry_errors: bool, fresh: bool) -> Job:
        from headrace.engine.jobs import Job

        defaults = self.llm.sampling_defaults(self.max_tokens)
        return Job.open(
            self.input,
            output,
            self.llm.signature(defaults),
            limit=self.limit,
            retry_errors=retry_errors,
            fresh=fresh,
            defaults=defaults,
            model=self.model,
            now=time.time,
            faults=self.llm.faults,
        )

    @contextmanager
    def _untouched(self) -> Iterator[Job]:
        """The job as it would be opened, on a copy of what opening may change."""
        from headrace.engine.sidecar import Sidecar

        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            copy = Path(folder) / self.output.name
            for path in (self.output, Sidecar(self.output).path):
                if path.exists() and not self.fresh:
                    shutil.copyfile(path, Path(folder) / path.name)
            with self._open(copy, self.retry_errors, False) as job:
                yield job
