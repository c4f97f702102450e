"""``bench throughput``: synthetic prompts through the engine, with and without overlap."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.cli.engine import open_llm
from headrace.cli.overlap import Summary, steady_rounds, throughput_report
from headrace.cli.plan_view import print_plan
from headrace.cli.progress import show_progress
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

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

    def write(self, path: Path, vocab: int) -> None:
        """A batch file of it: token ids as prompts, no early end."""
        draw = random.Random(self.seed)
        first = min(3, vocab - 1)
        with path.open("w", encoding="utf-8") as file:
            for i in range(self.batch):
                prompt = [draw.randrange(first, vocab) for _ in range(self.prompt_len)]
                body = {
                    "prompt": prompt,
                    "max_tokens": self.gen_len,
                    "temperature": 0,
                    "ignore_eos": True,
                }
                line = {"custom_id": str(i), "method": "POST", "url": "/v1/completions"}
                file.write(json.dumps({**line, "body": body}) + "\n")


def run_throughput(
    load: Load,
    *,
    settings: Mapping[str, Any],
    repeats: int,
    compare: bool,
    trace: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Play the load ``repeats`` times, each time beside a one_by_one run when that makes sense
    (something streams), and report. Plan and progress go to ``console``."""
    runner = _Runner(load, dict(settings), console, trace)

    def play() -> tuple[Summary, Summary | None]:
        first = runner.run(None)
        streams = first.get("schedule") in ("stream", "on_demand")
        return first, runner.run("one_by_one") if compare and streams else None

    rate = disk_rate(load.model) if compare else None
    report = throughput_report(*steady_rounds(play, rate, repeats))
    shape = {"batch": load.batch, "prompt_len": load.prompt_len, "gen_len": load.gen_len}
    return {"model": load.model, **shape, **report}


def disk_rate(model: str) -> Callable[[], float]:
    """A function that reads part of the checkpoint and returns bytes/s, two in flight."""
    from headrace.memory.checkpoint import Checkpoint
    from headrace.memory.disk import DiskReader
    from headrace.memory.disk_rate import measure_rate

    checkpoint = Checkpoint.open(model)

    def measured() -> float:
        nbytes = min(RATE_BYTES, checkpoint.total_bytes)
        reader = DiskReader(checkpoint.files)
        try:
            return measure_rate(reader, nbytes, 2, perf_counter).bytes_per_second
        finally:
            reader.close()

    return measured


class _Runner:
    """Runs the load, each time in a new engine; tells the plan once."""

    def __init__(
        self, load: Load, settings: dict[str, Any], console: Console, trace: Path | None
    ) -> None:
        self.load = load
        self.settings = settings
        self.console = console
        self.trace = trace
        self.told: set[str | None] = set()

    def run(self, schedule: str | None) -> Summary:
        """One run; ``schedule`` replaces the one that was asked for."""
        asked = {**self.settings, **({"schedule": schedule} if schedule else {})}
        with (
            open_llm(self.load.model, seed=self.load.seed, **asked) as llm,
            tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        ):
            plan = llm.plan(self.load.workload)
            if schedule not in self.told:
                self.told.add(schedule)
                print_plan(plan, self.console)
            return self._play(llm, Path(folder), plan, None if schedule else self.trace)

    def _play(self, llm: Any, folder: Path, plan: Any, trace: Path | None) -> Summary:
        from headrace.engine.jobs import Job

        self.load.write(folder / "in.jsonl", llm.spec.vocab)
        tokens = self.load.batch * (self.load.prompt_len + self.load.gen_len)
        job = Job(folder / "in.jsonl", folder / "out.jsonl")
        predicted = plan.prediction.seconds
        with show_progress(self.console, predicted, tokens) as progress:
            return llm.run(job, progress=progress, trace_path=trace).to_dict()
