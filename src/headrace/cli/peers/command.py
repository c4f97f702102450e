"""From the command's options to a race and its report."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from headrace.cli.peers.bounds import bounded
from headrace.cli.peers.hf import HOST_SHARE, Transformers
from headrace.cli.peers.llama import Llama
from headrace.cli.peers.ours import Ours
from headrace.cli.peers.race import Race, Result
from headrace.cli.peers.report import report
from headrace.cli.peers.shape import Contestant, Shape
from headrace.engine.hub import local_folder
from headrace.errors import ModelError, UsageError
from headrace.specs.policy import ACTIVATIONS


@dataclass(frozen=True)
class Peers:
    """The options. Raises UsageError where they do not make a race."""

    model: str
    llama: str | None
    ggufs: tuple[str, ...]
    llama_args: str
    transformers: bool
    accelerate: bool
    python: str | None
    batches: tuple[int, ...]
    prompt_len: int
    gen_len: int
    rounds: int
    timeout: float
    memory: int | None
    threads: int | None
    kernels: str
    activations: str | None = None

    def __post_init__(self) -> None:
        if (self.llama is None) != (not self.ggufs):
            raise UsageError("llama.cpp", expected="both --llama-batched-bench and --gguf")
        if not (self.ggufs or self.transformers or self.accelerate):
            raise UsageError("no peer", expected="--gguf, --transformers or --accelerate")
        if self.activations not in (None, *ACTIVATIONS):
            expected = " | ".join(ACTIVATIONS)
            raise UsageError("--activations", expected=expected, got=self.activations)
        if self.accelerate and self.memory is None:
            raise UsageError(
                "--accelerate", expected="--memory SIZE", hint="what fits needs no offloading"
            )

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """One for each batch."""
        threads = self.threads or len(os.sched_getaffinity(0))
        return tuple(Shape(b, self.prompt_len, self.gen_len, threads) for b in self.batches)

    def contestants(self, folder: str) -> tuple[Contestant, ...]:
        """Ours first."""
        python = self.python or sys.executable
        llamas = [Llama(str(self.llama), gguf, self.llama_args) for gguf in self.ggufs]
        types = ("float32", "bfloat16")
        resident = [Transformers(python, folder, t) for t in types if self.transformers]
        kept = int(HOST_SHARE * (self.memory or 0))
        offloaded = [Transformers(python, folder, "bfloat16", kept)] if self.accelerate else []
        ours = Ours(folder, label_of(folder), self.kernels, self.activations)
        return (ours, *llamas, *resident, *offloaded)


def race(peers: Peers, told: Callable[[str], object]) -> dict[str, Any]:
    """Run it and report. Raises UsageError when memory cannot be bounded, before any run."""
    folder = str(local_folder(peers.model))
    contestants = peers.contestants(folder)
    with bounded(peers.memory) as bound:
        said = bound.said
    found = Race(contestants, peers.shapes, peers.rounds, peers.timeout, peers.memory).run(told)
    about = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "model": peers.model,
        "rounds": peers.rounds,
        "bound": said,
        "memory_bytes": peers.memory,
        "versions": versions(contestants, found),
    }
    return report(found, peers.shapes, about)


def versions(contestants: tuple[Contestant, ...], results: list[Result]) -> dict[str, str]:
    """What each contestant said it is."""
    said = {r.name: r.version for r in reversed(results) if r.version}
    own = {c.name: c.version() for c in contestants if isinstance(c, Llama)}
    return {c.name: own.get(c.name) or said.get(c.name) or "unknown" for c in contestants}


def label_of(folder: str) -> str:
    """The format of a checkpoint's weights, as its config.json says. Raises ModelError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        quantised = config.get("quantization_config")
        kind = config.get("torch_dtype") or config.get("dtype") or "float32"
    except (OSError, ValueError, AttributeError) as fault:
        raise ModelError("no readable config.json", got=folder) from fault
    if isinstance(quantised, dict):
        return str(quantised.get("format") or quantised.get("quant_method") or "quantized")
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(str(kind), str(kind))


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and its cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
