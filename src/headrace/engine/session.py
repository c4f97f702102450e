"""A plan made real: memory taken, resident pages loaded, lanes started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.engine.answers import Answers, Prompt
from headrace.engine.detokenizer import Detokenizer
from headrace.engine.engine import Engine, Event
from headrace.engine.loaded import Loaded
from headrace.engine.record import Record
from headrace.engine.sampler import Sampler
from headrace.machines.machine import Clock
from headrace.machines.threads import Threads
from headrace.memory.arena import Arena
from headrace.models.bodies import make_bodies
from headrace.models.workspace import Workspace
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Schedule
from headrace.specs.policy import Policy

SchedulePicker = Callable[[int], str]
"""Names the schedule of the next sweep from the number of sequences that may be in it."""


class Session:
    """Holds everything a run needs under one policy. Close it to give the memory back."""

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        arena_bytes: int,
        clock: Clock,
        *,
        seed: int = 0,
        context: int,
        pick: SchedulePicker | None = None,
        on_load: Callable[[int], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.policy = policy
        self.arena = Arena("host", arena_bytes)
        sizes = buffer_sizes(loaded.model, loaded.pages, policy, loaded.page_bytes)
        self.workspace = Workspace(loaded.model, loaded.table, policy, sizes, self.arena)
        before = clock()
        self.loaded_bytes = self.workspace.load_resident(on_load)
        self.load_seconds = clock() - before
        self.batcher = Batcher(Limits.of(policy))
        self._record: Record | None = None
        self.engine = Engine(
            self.batcher,
            Sampler(seed, loaded.model.vocab),
            lambda stream: self._answers(context, stream),
            _Schedules(loaded, policy, pick or (lambda _: policy.schedule)),
            self._on_sweep,
            context,
        )
        self.machine = Threads(
            {**make_bodies(loaded.model, loaded.table, policy), **self.engine.bodies},
            self.workspace.view,
            clock,
            inline={"host": "cpu"},
            on_start=lambda lane: _prepare_thread(lane, policy.threads),
        )

    def run(
        self, prompts: Iterator[Prompt], record: Record | None = None, stream: bool = False
    ) -> Iterator[Event]:
        """Answer ``prompts``; see ``Engine.run``. ``record`` takes every sweep's trace."""
        self._record = record
        return self.engine.run(self.machine, prompts, stream)

    def close(self) -> None:
        """Stop the lanes and free the memory. Idempotent."""
        self.machine.close()
        del self.workspace, self.engine, self.machine
        self.arena.close()

    def _on_sweep(self, trace: object) -> None:
        if self._record is not None:
            self._record.add(trace)  # type: ignore[arg-type]

    def _answers(self, context: int, stream: bool) -> Answers:
        tokenizer = self.loaded.tokenizer
        return Answers(
            tokenizer.eos_ids,
            lambda prompt: Detokenizer(tokenizer, prompt.params, prompt.tokens),
            tokenizer.token_bytes,
            context,
            stream,
        )


class _Schedules:
    """The list of the next sweep. Lists are made once per name and place in the ring."""

    def __init__(self, loaded: Loaded, policy: Policy, pick: SchedulePicker) -> None:
        self._loaded = loaded
        self._policy = policy
        self._pick = pick
        self._phase = 0
        self._generate = lru_cache(maxsize=256)(self._make)

    def __call__(self, sequences: int) -> Schedule:
        schedule = self._generate(self._pick(sequences), self._phase)
        self._phase = next_phase(self._loaded.pages, self._policy, self._phase)
        return schedule

    def _make(self, name: str, phase: int) -> Schedule:
        policy = replace(self._policy, schedule=name)
        return generate(self._loaded.model, self._loaded.pages, policy, phase)


def _prepare_thread(lane: str, threads: int) -> None:
    """Settings that torch keeps per thread."""
    torch.set_grad_enabled(False)
    if lane == "cpu":
        torch.set_num_threads(threads)
