"""Batch jobs on a tiny engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.engine.batch import plan_job, run_job, store_plan
from headrace.engine.jobs import Job
from headrace.engine.llm import LLM
from headrace.engine.summary import RunSummary
from headrace.kernels import native
from headrace.specs.faults import Faults, no_faults

DEFAULTS = {"temperature": 0.0, "max_tokens": 6}


def batch_line(name: str, **body: Any) -> dict[str, Any]:
    """A line of OpenAI's batch files."""
    url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


LINES: list[object] = [
    batch_line("a", prompt="Hello there", max_tokens=2),
    batch_line("b", prompt=[5, 6, 7, 8], max_tokens=9, temperature=1.0, n=2),
    batch_line("c", messages=[{"role": "user", "content": "hi"}], max_tokens=5),
    "{not json",
    batch_line("d", prompt="x" * 300, max_tokens=3),
    batch_line("e", prompt="Once", max_tokens=7, logprobs=2),
    batch_line("f", prompt="upon", max_tokens=1),
    batch_line("g", prompt="a time", max_tokens=12, temperature=0.7, seed=3),
    batch_line("h", prompt=[5, 6, 7, 8], max_tokens=4, ignore_eos=True),
    batch_line("i", prompt=[100000], max_tokens=4),
    batch_line("j", prompt="the end", max_tokens=15, ignore_eos=True),
    batch_line("k", prompt="of it", max_tokens=18, ignore_eos=True),
    batch_line("l", prompt="all", max_tokens=20, ignore_eos=True),
]


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    """A JSONL file; text as it is."""
    texts = (x if isinstance(x, str) else json.dumps(x) for x in lines)
    path.write_text("".join(f"{t}\n" for t in texts))
    return path


def results(output: Path) -> list[dict[str, Any]]:
    """The lines of an output."""
    return [json.loads(line) for line in output.read_text().splitlines()]


def essence(output: Path) -> Counter[str]:
    """What must be equal in two runs of a job: every line's key, choices, usage and error."""
    return Counter(json.dumps(_essence(r), sort_keys=True) for r in results(output))


def _essence(record: dict[str, Any]) -> list[Any]:
    """With torch's products, which are not row-invariant, log-probabilities may differ in their
    last digits; with native kernels nothing may."""
    body = (record.get("response") or {}).get("body") or record
    for choice in () if native.available() else body.get("choices") or ():
        choice["logprobs"] = (choice.get("logprobs") or {}).get("tokens")
    kept = {k: body.get(k) for k in ("choices", "usage", "text", "finish_reason")}
    return [record.get("key"), record["id"], kept, record["error"]]


@contextmanager
def opened(
    llm: LLM,
    source: Path,
    output: Path,
    faults: Faults = no_faults,
    defaults: Mapping[str, Any] = DEFAULTS,
    **how: Any,
) -> Iterator[Job]:
    """The job as ``run-batch`` opens it."""
    signature = llm.signature(defaults)
    with Job.open(source, output, signature, defaults=defaults, faults=faults, **how) as job:
        yield job


def run(llm: LLM, source: Path, output: Path, **how: Any) -> RunSummary | None:
    """Do what is left of a job; None when nothing is."""
    with opened(llm, source, output, **how) as job:
        if not job.pending:
            return None
        plan_job(llm, job)
        store_plan(llm, job, {})
        return run_job(llm, job)
