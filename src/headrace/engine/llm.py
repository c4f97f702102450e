"""The offline interface: open a model, plan, answer prompts or a batch file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.engine.answers import Delta, Prompt
from headrace.engine.engine import Event, Refused
from headrace.engine.loaded import Loaded
from headrace.engine.outputs import RequestOutput
from headrace.engine.probe import measure_machine, usable_threads
from headrace.engine.record import Record
from headrace.engine.session import Session
from headrace.errors import UsageError
from headrace.memory.tiers import default_budget
from headrace.planner.rules import Plan, make_plan
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import Hardware
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

Messages = Sequence[Mapping[str, Any]]
PromptLike = str | Sequence[int]


class LLM:
    """A model on this machine, within ``memory`` bytes for weights, KV, activations and scratch.

    ``memory`` None takes the default budget. ``schedule``, ``max_seqs`` (sequences in a sweep)
    and ``max_rows`` (tokens in a sweep) override the plan's choice. The first use measures the
    machine, plans, and takes the memory; later calls keep the plan. Not thread-safe. Use as a
    context manager, or ``close`` it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: int | None = None,
        schedule: str | None = None,
        seed: int = 0,
        kv_dtype: str = "f16",
        max_seqs: int | None = None,
        max_rows: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        direct: bool | None = None,
    ) -> None:
        self.clock: Callable[[], float] = time.perf_counter  # noqa: TID251 (the outermost layer)
        self.loaded = Loaded.open(model, direct)
        self.seed = seed
        self.kv_dtype = kv_dtype
        self.threads = threads or usable_threads()
        self.context = self._context(max_model_len)
        self._overrides = {"schedule": schedule, "max_seqs": max_seqs, "max_rows": max_rows}
        self._memory = memory
        self._hardware: Hardware | None = None
        self._plan: Plan | None = None
        self._session: Session | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    @property
    def hardware(self) -> Hardware:
        """This machine, measured with this model when first asked for."""
        if self._hardware is None:
            self._hardware = measure_machine(
                self.loaded,
                self.clock,
                threads=self.threads,
                kv_dtype=self.kv_dtype,
                capacity_bytes=self.budget,
            )
        return self._hardware

    @property
    def budget(self) -> int:
        """Bytes that weights, ring, KV, activations and scratch may take together."""
        if self._memory is None:
            self.loaded.tokenizer.vocab_size  # noqa: B018 (loaded first: it counts as baseline)
            self._memory = default_budget().budget_bytes
        return self._memory
