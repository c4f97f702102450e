"""A tiny model that streams, a batch file for it, and jobs on both that may be made to fail."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.cli.faults import faults_of
from headrace.cli.make_checkpoint import make_checkpoint, small_spec
from headrace.engine.batch import plan_job, run_job, store_plan
from headrace.engine.jobs import Job
from headrace.engine.llm import LLM
from headrace.errors import BudgetError
from headrace.specs.faults import Faults
from headrace.specs.registry import known_hardware

SIZES = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_width": 160}
VOCAB = 512
MAX_TOKENS = 12
LINES = 40

MAX_SEQS = 6
"""Sequences in a sweep at most: a plan that takes more ends in fewer sweeps than the moment at
which it is to be killed."""


@dataclass(frozen=True)
class Rig:
    """A checkpoint, a budget under which it streams, and the input of a job."""

    model: Path
    source: Path
    memory: int

    @classmethod
    def make(cls, folder: Path, lines: int = LINES) -> Rig:
        """Write both into ``folder``."""
        model, source = folder / "model", folder / "in.jsonl"
        spec = small_spec("mixtral", "f32", {**SIZES, "vocab": VOCAB})
        make_checkpoint(spec, model, shard_bytes=200_000)
        source.write_text("".join(f"{json.dumps(line)}\n" for line in _lines(lines)))
        rig = cls(model, source, 1)
        return replace(rig, memory=_least_memory(rig) * 3 // 2)

    def llm(self, faults: Faults | None = None) -> LLM:
        """An engine with one thread and figures of a machine that nobody measured."""
        return LLM(
            self.model,
            memory=self.memory,
            kv_dtype="f32",
            threads=1,
            max_seqs=MAX_SEQS,
            hardware=known_hardware("cpu-2core").hardware,
            **({} if faults is None else {"faults": faults}),
        )

    def arguments(self, output: Path, *more: str) -> list[str]:
        """The command line of the same job."""
        settings = ["--memory", str(self.memory), "--threads", "1", "--kv-cache-dtype", "f32"]
        settings += ["--max-num-seqs", str(MAX_SEQS)]
        files = ["-i", str(self.source), "-o", str(output)]
        cap = ["--max-tokens", str(MAX_TOKENS)]
        return ["run-batch", str(self.model), *files, *settings, *cap, *more]


def run(rig: Rig, output: Path, faults: str | Faults = "", **how: Any) -> None:
    """Do what is left of the job, through the points that ``faults`` names."""
    points = faults_of(faults) if isinstance(faults, str) else faults
    with rig.llm(points) as llm:
        run_with(llm, rig, output, points, **how)


def run_with(
    llm: LLM,
    rig: Rig,
    output: Path,
    faults: Faults = lambda _: None,
    now: Callable[[], float] = time.time,
) -> None:
    """The same on an engine that is open."""
    defaults = llm.sampling_defaults(MAX_TOKENS)
    with Job.open(
        rig.source, output, llm.signature(defaults), defaults=defaults, now=now, faults=faults
    ) as job:
        if job.pending:
            plan_job(llm, job)
            store_plan(llm, job, {})
            run_job(llm, job)


def essence(output: Path) -> Counter[str]:
    """What must be equal in two runs of a job: of every line its key, choices, usage, error."""
    return Counter(json.dumps(_essence(record), sort_keys=True) for record in records(output))


def records(output: Path) -> list[dict[str, Any]]:
    """The lines of an output. Raises ValueError for one that is not whole."""
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def passings(rig: Rig, output: Path) -> Counter[str]:
    """How often an undisturbed run, which leaves ``output``, passes every point."""
    passed: Counter[str] = Counter()
    run(rig, output, lambda point: passed.update((point,)))
    return passed


def _essence(record: dict[str, Any]) -> list[Any]:
    body = (record.get("response") or {}).get("body") or record
    kept = {name: body.get(name) for name in ("choices", "usage", "text", "finish_reason")}
    return [record["id"], record.get("key"), record.get("custom_id"), kept, record["error"]]


def _lines(count: int) -> list[dict[str, Any]]:
    """Short and long, greedy and drawn, some equal, some with two choices, two at fault."""
    lines: list[dict[str, Any]] = [
        {"prompt": "again", "max_tokens": 3},
        {"prompt": "again", "max_tokens": 3},
        {"messages": "at fault"},
        _batch("fault", {"prompt": "x", "n": 0}),
    ]
    for i in range(count - len(lines)):
        body = {"prompt": f"line {i} " * (1 + i % 5), "max_tokens": 1 + i * 5 % 12}
        body |= {"temperature": (0.0, 0.9)[i % 2], "ignore_eos": i % 3 > 0, "n": 1 + (i % 11 == 5)}
        lines.append(_batch(f"line-{i}", body) if i % 4 else {"id": i, **body})
    return lines


def _batch(name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


def _least_memory(rig: Rig) -> int:
    with rig.llm() as llm:
        defaults = llm.sampling_defaults(MAX_TOKENS)
        output = rig.source.with_name("none.jsonl")
        with Job.open(rig.source, output, {}, defaults=defaults) as job:
            try:
                plan_job(llm, job)
            except BudgetError as refused:
                return refused.smallest_bytes
    raise AssertionError("one byte was enough")
