"""This engine as a contestant: a process that plans, loads, runs, and prints its times.

``python -m headrace.cli.peers.ours`` is the process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from headrace.cli.peers.shape import Shape, Times

if TYPE_CHECKING:
    from headrace.engine.record import Record


@dataclass(frozen=True)
class Ours:
    """Headrace on a checkpoint folder. Its budget is what it finds free, as always."""

    model: str
    label: str
    kernels: str = "auto"
    activations: str | None = None

    @property
    def name(self) -> str:
        """Engine and format, and activations where they were asked for."""
        met = f" x {self.activations}" if self.activations else ""
        return f"headrace {self.label}{met}"

    @property
    def files(self) -> tuple[str, ...]:
        """The folder."""
        return (self.model,)

    @property
    def scratch(self) -> None:
        """Needs none."""
        return None

    def command(self, shape: Shape) -> list[str]:
        """This interpreter, this module."""
        numbers = [shape.batch, shape.prompt_len, shape.gen_len, shape.threads]
        worker = [sys.executable, "-m", "headrace.cli.peers.ours"]
        asked = [self.activations] if self.activations else []
        return [*worker, self.model, *map(str, numbers), self.kernels, *asked]

    def times(self, output: str, shape: Shape) -> Times:
        """The last line."""
        return last_line(output)


def last_line(output: str) -> Times:
    """The times in the last line of a worker's output. Raises ValueError."""
    lines = output.strip().splitlines()
    try:
        return Times.parse(json.loads(lines[-1]))
    except (IndexError, KeyError, TypeError, ValueError) as fault:
        said = lines[-1][:120] if lines else "nothing"
        raise ValueError(f"expected times as JSON in the last line, got {said}") from fault


def main(arguments: list[str]) -> None:
    """MODEL BATCH PROMPT_LEN GEN_LEN THREADS KERNELS [ACTIVATIONS]: run once, print ``Times`` as
    JSON."""
    model, kernels = arguments[0], arguments[5]
    shape = Shape(*map(int, arguments[1:5]))
    print(json.dumps(asdict(run(model, shape, kernels, *arguments[6:]))))


def run(model: str, shape: Shape, kernels: str, activations: str | None = None) -> Times:
    """Plan for the shape, load, answer every prompt greedily to its last token."""
    from headrace import __version__
    from headrace.cli.throughput import Load
    from headrace.engine.llm import LLM

    load = Load(model, shape.batch, shape.prompt_len, shape.gen_len)
    with LLM(model, threads=shape.threads, kernels=kernels, activations=activations) as llm:
        plan = llm.plan(load.workload)
        llm.session  # noqa: B018 (takes memory and loads what stays: not part of the race)
        record = llm.new_record()
        began = perf_counter()
        for _ in llm.events(load.prompts(llm.loaded.model.vocab), record):
            pass
        seconds = perf_counter() - began
        version = f"headrace {__version__}, {plan.policy.schedule}, {llm.numerics}"
        return times_of(record, shape, seconds, version)


def times_of(record: Record, shape: Shape, seconds: float, version: str) -> Times:
    """Prefill until the last prompt's last row; decode in the sweeps after it that hold every
    sequence. Where no sweep does (a tail only, or one token each), in all sweeps after it.

    Tokens drawn while prompts were still being read count in ``seconds`` alone.
    """
    sweeps = record.sweeps
    last = max((i for i, s in enumerate(sweeps) if s.prefill_rows), default=-1)
    after = sweeps[last + 1 :]
    full = [s for s in after if s.decode_rows == shape.batch] or after
    return Times(
        prefill_tokens=sum(s.prefill_rows for s in sweeps),
        prefill_seconds=sum(s.seconds for s in sweeps[: last + 1]),
        decode_tokens=sum(s.decode_rows for s in full),
        decode_seconds=sum(s.seconds for s in full),
        seconds=seconds,
        version=version,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
