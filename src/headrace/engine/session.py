"""A plan made real: memory taken, resident pages loaded, lanes started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import torch

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.engine.answers import Answers, Prompt
from headrace.engine.detokenizer import Detokenizer
from headrace.engine.engine import Engine, Event, Stop, never
from headrace.engine.explain import Explainer
from headrace.engine.followers import Exchange, Followers
from headrace.engine.loaded import Loaded
from headrace.engine.record import Record
from headrace.engine.sampler import Sampler
from headrace.engine.sweep import Sweep
from headrace.errors import UsageError
from headrace.kernels.select import select
from headrace.machines.machine import Body, Clock, Machine
from headrace.machines.threads import Threads
from headrace.machines.trace import SweepTrace
from headrace.memory.arena import Arena
from headrace.models.bodies import make_bodies
from headrace.models.sweep import nothing_to_do
from headrace.models.workspace import Workspace
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Op, Schedule
from headrace.specs.faults import Faults, no_faults
from headrace.specs.policy import Policy

SchedulePicker = Callable[[int], str]
"""Names the schedule of the next sweep from the number of rows that it is expected to have."""

MachineFactory = Callable[[Mapping[Op, Body], Workspace, Clock], Machine]
"""Makes the machine that runs bodies over a workspace."""

KEPT_TASKS = 20_000
"""Tasks of schedules that are kept for reuse; about a kilobyte each."""


def lanes_as_threads(bodies: Mapping[Op, Body], workspace: Workspace, clock: Clock) -> Machine:
    """A worker per lane; what touches the requests shares the arithmetic's."""
    threads = torch_threads(workspace.policy)
    return Threads(
        bodies,
        workspace.view,
        clock,
        inline={"host": "cpu"},
        on_start=lambda lane: _prepare_thread(lane, threads),
        passes=nothing_to_do,
    )


class Session:
    """Holds everything a run needs under one policy. Close it to give the memory back.

    ``pick`` names the schedule of each sweep (by default the policy's), ``machine`` makes what
    runs it. With ``follow_routing`` other experts may come to stay than the policy's, as many.
    Raises BudgetError when ``arena_bytes`` is not enough, StorageError when a resident page cannot
    be read.
    """

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
        machine: MachineFactory = lanes_as_threads,
        follow_routing: bool = False,
        faults: Faults = no_faults,
    ) -> None:
        self.loaded = loaded
        self.policy = policy
        self.batcher = Batcher(Limits.of(policy))
        self._record: Record | None = None
        self._schedules = _Schedules(loaded, policy, pick or (lambda _: policy.schedule))
        self._followers: Followers | None = None
        if follow_routing:
            self._followers = Followers(
                loaded.model, loaded.pages, policy.resident, loaded.page_bytes
            )
        self._exchanges: list[Exchange] = []
        self._exchanging = threading.Lock()
        self.engine = Engine(
            self.batcher,
            Sampler(seed, loaded.model.vocab, select(policy.kernels, policy.threads)),
            lambda stream: self._answers(context, stream),
            self._schedules,
            self._on_sweep,
            self._on_cut,
            context,
            Explainer(loaded.checkpoint),
            faults,
            self._settle,
        )
        self.arena = Arena("host", arena_bytes)
        # Not the sampler's: these remember the weights they met, and the engine outlives the arena.
        kernels = select(policy.kernels, policy.threads, policy.activations)
        try:
            sizes = buffer_sizes(loaded.model, loaded.pages, policy, loaded.page_bytes)
            self._workspace = Workspace(
                loaded.model, loaded.table, policy, sizes, self.arena, kernels.turn
            )
            faults("start.memory")
            before = clock()
            self.loaded_bytes = self._workspace.load_resident(on_load)
            self.load_seconds = clock() - before
            faults("start.loaded")
        except BaseException:
            self.arena.close()
            raise
        bodies = {**make_bodies(loaded.model, loaded.table, policy, kernels), **self.engine.bodies}
        self._machine: Machine | None = machine(bodies, self._workspace, clock)

    def run(
        self,
        prompts: Iterator[Prompt],
        record: Record | None = None,
        stream: bool = False,
        stop: Stop = never,
    ) -> Generator[Event]:
        """Answer ``prompts``; see ``Engine.run``. ``record`` takes what every sweep did."""
        if self._machine is None:
            raise UsageError("the session is closed")
        self._record = record
        if record is not None:
            record.before = self.batcher.counters.copy()
        return self.engine.run(self._machine, prompts, stream, stop)

    def close(self) -> None:
        """Stop the lanes and free the memory, once nobody holds a view of it. Idempotent."""
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.close()
            del self._workspace
            self.arena.close()

    def _settle(self, rows: int, sweeps_left: int, idle: bool) -> bool:
        """Before a sweep that reads what is routed: let experts change places, where that pays."""
        followers = self._followers
        if followers is None or self._schedules.name(rows) != "on_demand":
            return False
        if not self._exchanges and followers.due():
            self._exchanges = followers.exchanges(rows, sweeps_left)
        if self._exchanges and idle:
            self._exchange(followers)
        return bool(self._exchanges)

    def _exchange(self, followers: Followers) -> None:
        """All that is planned, on as many threads as the disk has lanes. What a failure leaves
        undone is forgotten, and weighed again."""
        planned, self._exchanges = self._exchanges, []
        lanes = min(self.policy.disk_lanes, self.policy.ring_slots)

        def exchange_all(slot: int) -> None:
            for exchange in planned[slot::lanes]:
                moved = self._workspace.exchange(*exchange, slot)
                with self._exchanging:
                    followers.exchanged(exchange)
                    if self._record is not None:
                        self._record.bytes_read += moved

        try:
            with ThreadPoolExecutor(lanes) as threads:
                list(threads.map(exchange_all, range(lanes)))
        finally:
            self._schedules.keep(followers.resident)
            if self._machine is not None:  # idle: waits on pages that are read no more end here
                self._machine.cancel()

    def _on_sweep(self, trace: SweepTrace) -> None:
        assert isinstance(trace.sweep, Sweep)
        if self._followers is not None:
            self._followers.saw(trace.sweep.binding.routed)
        if self._record is not None:
            self._record.add(trace)

    def _on_cut(self, sweep: Sweep) -> None:
        if self._record is not None:
            self._record.cut(sweep)

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
    """The list of the next sweep. Lists are made once per name and place in the ring, as far as
    KEPT_TASKS go; making one again costs a few milliseconds."""

    def __init__(self, loaded: Loaded, policy: Policy, pick: SchedulePicker) -> None:
        self._loaded = loaded
        self._policy = policy
        self._pick = pick
        self._phase = 0
        kept = max(2, KEPT_TASKS // (2 * len(loaded.pages)))  # a task per page, one per read
        self._generate = lru_cache(maxsize=kept)(self._make)

    def name(self, rows: int) -> str:
        """Of the schedule of a sweep of ``rows`` rows."""
        return self._pick(rows)

    def keep(self, resident: frozenset[int]) -> None:
        """From now on other pages stay, as many as before."""
        self._policy = replace(self._policy, resident=resident)
        self._generate.cache_clear()

    def __call__(self, rows: int) -> Schedule:
        schedule, self._phase = self._generate(self._pick(rows), self._phase)
        return schedule

    def _make(self, name: str, phase: int) -> tuple[Schedule, int]:
        """A list, and where the ring stands behind it: to count what is streamed, of a thousand
        pages, would keep the next sweep waiting every time."""
        policy, pages = replace(self._policy, schedule=name), self._loaded.pages
        made = generate(self._loaded.model, pages, policy, phase)
        return made, next_phase(pages, policy, phase)


def torch_threads(policy: Policy) -> int:
    """Threads for what torch still computes. Beside native kernels it gets one: its team would
    spin on the cores that they need, and what is left to it is small."""
    return 1 if policy.kernels == "native" else policy.threads


def _prepare_thread(lane: str, threads: int) -> None:
    """Settings that torch keeps per thread."""
    torch.set_grad_enabled(False)
    if lane == "cpu":
        torch.set_num_threads(threads)
