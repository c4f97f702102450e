"""The loop: requests to sweeps to tokens.

Two sweeps are in flight, so that reads of the next one start in the tail of this one. What a
sweep computes is decided by its BIND task, right after the last sweep's COMMIT: the list of
tasks is known long before, the amounts only then.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from headrace.batching.batcher import Batcher
from headrace.engine.answers import Answered, Answers, Delta, Prompt, as_request
from headrace.engine.sampler import Sampler
from headrace.engine.sweep import Sweep
from headrace.errors import LineError
from headrace.machines.machine import Body, Machine, Ticket, Views
from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task

IN_FLIGHT = 2
"""Sweeps appended at a time: the running one and the one whose reads may start."""


class Refused(NamedTuple):
    """A request that cannot run, and why."""

    prompt: Prompt
    error: LineError


class SweepEnd(NamedTuple):
    """A sweep has ended and all its answers were told: a good moment to write and report."""

    sweep: int


Event = Answered | Delta | Refused | SweepEnd
ScheduleSource = Callable[[int], Schedule]
"""Gives the list for the next sweep from the number of sequences that may be in it."""


class Engine:
    """Runs prompts through a machine. One ``run`` at a time; ``bodies`` go to the machine."""

    def __init__(
        self,
        batcher: Batcher,
        sampler: Sampler,
        new_answers: Callable[[bool], Answers],
        schedules: ScheduleSource,
        on_sweep: Callable[[SweepTrace], None],
        context: int,
    ) -> None:
        self._batcher = batcher
        self._sampler = sampler
        self._new_answers = new_answers
        self._schedules = schedules
        self._on_sweep = on_sweep
        self._context = context
        self._answers = new_answers(False)
        self._lock = threading.Lock()
        self._sweeps = 0
        self._landed = 0

    @property
    def bodies(self) -> dict[Op, Body]:
        """Bodies of the tasks that decide and remember; the arithmetic is the model's."""
        return {Op.BIND: self._bind, Op.SAMPLE: self._sample, Op.COMMIT: self._commit}

    def run(
        self, machine: Machine, prompts: Iterator[Prompt], stream: bool = False
    ) -> Iterator[Event]:
        """Answer ``prompts`` as they come; yields in completion order.

        ``stream`` adds a Delta for each piece of text. However it ends (an error, Ctrl-C, a
        closed iterator), the machine is left idle and nothing of an open request is kept.
        """
        self._answers = self._new_answers(stream)
        flights: deque[Ticket] = deque()
        try:
            yield from self._feed(prompts)
            while True:
                while len(flights) < IN_FLIGHT and self._sweeps_left() > len(flights):
                    flights.append(self._launch(machine))
                if not flights:
                    return
                self._land(flights.popleft())
                yield from self._take()
                yield SweepEnd(self._landed)
                yield from self._feed(prompts)
        finally:
            machine.cancel()
            self._batcher.clear()

    def _launch(self, machine: Machine) -> Ticket:
        self._sweeps += 1
        with self._lock:
            sequences = self._batcher.active + self._batcher.waiting
        return machine.append(self._schedules(sequences), Sweep(self._sweeps))

    def _land(self, ticket: Ticket) -> None:
        trace = ticket.wait()
        self._landed += 1
        self._on_sweep(trace)
        trace.sweep.release()  # type: ignore[attr-defined]

    def _feed(self, prompts: Iterator[Prompt]) -> Iterator[Refused]:
        """Keep one sweep's worth of requests waiting, tokenised while the machine works."""
        while self._batcher.needs_requests:
            prompt = next(prompts, None)
            if prompt is None:
                return
            try:
                with self._lock:
                    sequences = self._batcher.add(as_request(prompt, self._context))
                    self._answers.open(sequences, prompt)
            except LineError as error:
                yield Refused(prompt, error)

    def _take(self) -> list[Answered | Delta]:
        with self._lock:
            return self._answers.take()

    def _sweeps_left(self) -> int:
        with self._lock:
            return self._batcher.most_sweeps_left()

    def _bind(self, task: Task, views: Views, sweep: Sweep) -> None:
        with self._lock:
            sweep.bind(self._batcher.next_batch())

    def _sample(self, task: Task, views: Views, sweep: Sweep) -> None:
        sequences = sweep.batch.sampled
        if sequences:
            logits = views[Buffer("logits")][: len(sequences)]
            sweep.sampled = self._sampler.sample(logits, self._answers.rows(sequences))

    def _commit(self, task: Task, views: Views, sweep: Sweep) -> None:
        with self._lock:
            tokens, ended = self._answers.accept(sweep.batch.sampled, sweep.sampled)
            self._batcher.commit(sweep.batch, tokens, ended)
