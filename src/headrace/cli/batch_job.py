"""One batch job on an open engine: plan, run, picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.plan_view import plan_dict, plan_text, print_plan
from headrace.cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.engine.jobs import Job
    from headrace.engine.llm import LLM

log = logging.getLogger("headrace.run_batch")


@dataclass(frozen=True)
class BatchRun:
    """What ``run-batch`` was asked to do. ``console`` gets plan and progress."""

    llm: LLM
    input: Path
    output: Path
    limit: int | None
    retry_errors: bool
    fresh: bool
    max_tokens: int
    console: Console

    def plan(self) -> dict[str, Any]:
        """Print the plan and return it, nothing run."""
        plan = self.llm.plan(self.llm.workload(self._job()))
        print_plan(plan, self.console)
        return plan_dict(plan)

    def run(self, trace: Path | None) -> dict[str, Any]:
        """Print the plan, run the job, draw the trace; returns the summary."""
        job = self._job()
        workload = self.llm.workload(job)
        plan = self.llm.plan(workload)
        print_plan(plan, self.console)
        log.info("plan\n%s", plan_text(plan))
        tokens = workload.prompt_tokens + workload.gen_tokens
        predicted = plan.prediction.seconds
        with show_progress(self.console, predicted, tokens) as progress:
            summary = self.llm.run(job, progress=progress, trace_path=trace).to_dict()
        log.info("summary %s", summary)
        if trace is not None:
            self._draw(trace)
        return summary

    def _draw(self, trace: Path) -> None:
        from headrace.cli.trace_files import draw_trace

        picture = draw_trace(trace, f"{self.input.name}: predicted above measured")
        self.console.print(f"timeline: {picture} ({trace} opens in Perfetto)")

    def _job(self) -> Job:
        from headrace.engine.jobs import Job

        return Job(
            self.input,
            self.output,
            limit=self.limit,
            retry_errors=self.retry_errors,
            fresh=self.fresh,
            max_tokens=self.max_tokens,
        )
