"""The loop: requests to sweeps to tokens.

Two sweeps are in flight, so that reads of the next one start in the tail of this one. What a
sweep computes is decided by its BIND task, right after the last sweep's COMMIT: the list of
tasks is known long before, the amounts only then. A sweep that finds nothing left to do, since
all ended earlier than they might have, is cut short.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from headrace.batching.batcher import Batcher
from headrace.engine.answers import Answered, Answers, Delta, Prompt, Refused, as_request
from headrace.engine.collector import standing_objects_spared
from headrace.engine.sampler import Sampler
from headrace.engine.sweep import Sweep
from headrace.errors import LineError, NumericsError, UsageError
from headrace.machines.machine import Body, Cancelled, Machine, Ticket, Views
from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Buffer, Op, Schedule, Task
from headrace.specs.faults import Faults, no_faults

IN_FLIGHT = 2
"""Sweeps appended at a time: the running one and the one whose reads may start."""


LONG_RUN = 20
"""Sweeps after which the garbage collector is spared what stood before: many short runs one after
the other must not keep it from ever looking."""

STOP_SECONDS = 0.1
"""How often a run that waits for the machine asks whether it was told to stop."""


class SweepEnd(NamedTuple):
    """A sweep has ended and all its answers were told: a good moment to write and report."""

    sweep: int


Event = Answered | Delta | Refused | SweepEnd
ScheduleSource = Callable[[int], Schedule]
"""Gives the list for the next sweep from the number of rows that it is expected to have."""

Settle = Callable[[int, int, bool], bool]
"""``settle(rows, sweeps_left, idle)``, before a sweep is appended: whether it must wait until the
machine is idle, since something is to change that no sweep may see changing."""

Stop = Callable[[], None]
"""Raises what ends a run, if anything does: called where nothing is half done."""


Explain = Callable[[NumericsError, Stop], NumericsError]
"""Finds the reason of NaN or infinity in some logits. It may take as long as reading the weights,
and calls the second argument meanwhile."""


def never() -> None:
    """Nothing ends the run."""


class Flight(NamedTuple):
    """A sweep that was appended and has not been waited for."""

    ticket: Ticket
    sweep: Sweep


class Engine:
    """Runs prompts through a machine. One ``run`` at a time; ``bodies`` go to the machine.

    ``on_sweep`` gets the trace of each sweep that ended, ``on_cut`` those that were cut short.
    """

    def __init__(
        self,
        batcher: Batcher,
        sampler: Sampler,
        new_answers: Callable[[bool], Answers],
        schedules: ScheduleSource,
        on_sweep: Callable[[SweepTrace], None],
        on_cut: Callable[[Sweep], None],
        context: int,
        explain: Explain,
        faults: Faults = no_faults,
        settle: Settle = lambda rows, sweeps_left, idle: False,
    ) -> None:
        self._settle = settle
        self._batcher = batcher
        self._sampler = sampler
        self._new_answers = new_answers
        self._schedules = schedules
        self._on_sweep = on_sweep
        self._on_cut = on_cut
        self._context = context
        self._explain = explain
        self._faults = faults
        self._answers = new_answers(False)
        self._lock = threading.Lock()  # guards batcher and answers, which BIND and COMMIT change
        self._busy = False
        self._sweeps = 0
        self._landed = 0

    @property
    def bodies(self) -> dict[Op, Body]:
        """Bodies of the tasks that decide and remember; the arithmetic is the model's."""
        return {Op.BIND: self._bind, Op.SAMPLE: self._sample, Op.COMMIT: self._commit}

    def run(
        self,
        machine: Machine,
        prompts: Iterator[Prompt],
        stream: bool = False,
        stop: Stop = never,
    ) -> Generator[Event]:
        """Answer ``prompts`` as they come; yields in completion order.

        ``stream`` adds a Delta for each piece of text. ``stop`` is called between any two steps
        and every STOP_SECONDS while the machine works; what it raises ends the run. However it
        ends (an error, Ctrl-C, a closed iterator), the machine is left idle and nothing of an
        open request is kept.
        Raises UsageError while another run is under way.
        """
        if self._busy:
            raise UsageError("a run is under way", hint="finish it, or close its iterator, first")
        self._busy = True
        self._answers = self._new_answers(stream)
        flights: deque[Flight] = deque()
        try:
            with ExitStack() as under:
                before = self._landed
                yield from self._feed(prompts, stop)
                while self._has_work(flights):
                    self._launch(machine, flights)
                    self._land(flights, stop)
                    if self._landed - before == LONG_RUN:
                        under.enter_context(standing_objects_spared())
                    yield from self._take(stop)
                    yield SweepEnd(self._landed)
                    yield from self._feed(prompts, stop)
        finally:
            self._stop(machine, flights)

    def unclaimed(self) -> list[Answered | Delta | Refused]:
        """What was ready when the last run was stopped, and not taken from it."""
        return list(self._ready())

    def _launch(self, machine: Machine, flights: deque[Flight]) -> None:
        """Append sweeps while they are sure to have rows, unless all end early."""
        while len(flights) < IN_FLIGHT:
            with self._lock:
                outlook = self._batcher.outlook()
            if outlook.sweeps_left <= len(flights):
                return
            rows, left = outlook.rows(after=len(flights)), outlook.sweeps_left - len(flights)
            if self._settle(rows, left, not flights):
                return
            self._sweeps += 1
            sweep = Sweep(self._sweeps)
            flights.append(Flight(machine.append(self._schedules(rows), sweep), sweep))

    def _land(self, flights: deque[Flight], stop: Stop) -> None:
        """Wait for the oldest sweep."""
        try:
            trace = _wait(flights[0].ticket, stop)
        except Cancelled:
            raise UsageError("the engine was closed during a run") from None
        flight = flights.popleft()
        self._landed += 1
        self._on_sweep(trace)
        flight.sweep.release()

    def _feed(self, prompts: Iterator[Prompt], stop: Stop) -> Iterator[Refused]:
        """Keep one sweep's worth of requests waiting, tokenised while the machine works."""
        while self._needs_requests():
            stop()
            prompt = next(prompts, None)
            if prompt is None:
                return
            try:
                with self._lock:
                    sequences = self._batcher.add(as_request(prompt, self._context))
                    self._answers.open(sequences, prompt)
            except LineError as error:
                yield Refused(prompt, error)

    def _take(self, stop: Stop) -> Iterator[Answered | Delta | Refused]:
        for event in self._ready():
            if isinstance(event, Refused) and isinstance(event.error, NumericsError):
                event = Refused(event.prompt, self._explain(event.error, stop))
            yield event

    def _ready(self) -> Iterator[Answered | Delta | Refused]:
        while True:
            with self._lock:
                event = self._answers.pop()
            if event is None:
                return
            yield event

    def _stop(self, machine: Machine, flights: deque[Flight]) -> None:
        """Leave the machine idle; forget every open request."""
        try:
            machine.cancel()
            for flight in flights:
                self._on_cut(flight.sweep)
        finally:
            with self._lock:
                self._batcher.clear()
                self._answers.clear()
            self._busy = False

    def _has_work(self, flights: deque[Flight]) -> bool:
        """Whether a request is open, or was when a sweep in flight was bound: its answers, if
        all are whole by now, were not taken yet."""
        with self._lock:
            return self._batcher.has_work or any(f.sweep.batch.rows for f in flights)

    def _needs_requests(self) -> bool:
        with self._lock:
            return self._batcher.needs_requests

    def _bind(self, task: Task, views: Views, sweep: Sweep) -> None:
        with self._lock:
            sweep.bind(self._batcher.next_batch())

    def _sample(self, task: Task, views: Views, sweep: Sweep) -> None:
        sequences = sweep.batch.sampled
        if sequences:
            logits = views[Buffer("logits")][: len(sequences)]
            sweep.sampled = self._sampler.sample(logits, self._answers.rows(sequences))

    def _commit(self, task: Task, views: Views, sweep: Sweep) -> None:
        self._faults("sweep.commit")
        with self._lock:
            tokens, ended = self._answers.accept(sweep.batch.sampled, sweep.sampled)
            self._batcher.commit(sweep.batch, tokens, ended)
        self._faults("sweep.committed")


def _wait(ticket: Ticket, stop: Stop) -> SweepTrace:
    while True:
        stop()
        try:
            return ticket.wait(STOP_SECONDS)
        except TimeoutError:
            continue
