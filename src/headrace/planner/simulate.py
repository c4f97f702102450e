"""Play a whole job: the engine's own batcher decides, prices say what each sweep takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from headrace.planner.decided import Decided, Decisions
from headrace.planner.prices import Sketches, price
from headrace.planner.sweeps import LaneSeconds, Load
from headrace.planner.thinning import rest_seconds
from headrace.schedule.tally import Kinds
from headrace.specs.hardware import DISK, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

STEPS = 120_000
"""Tokens generated one by one in a simulation, before only a slice of the job is played."""

_MODEL_ERROR = 0.10  # of a measured machine; stock figures are trusted half as much
_SHORTEST, _LONGEST = 0.5, 1.6  # assumed generation lengths over those of the interval's ends


class FirstTokens(NamedTuple):
    """Seconds from the start of the job to a request's first token."""

    mean: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What a job will take. ``low`` and ``high`` bound ``seconds``; ``assumed`` says that
    output lengths were a guess. ``lanes`` holds busy seconds, ``bytes_moved`` bytes by link and
    memory. A sweep's seconds are shared between prompts and decodes by rows: ``prefill_seconds``
    are the prompts'. ``bound_seconds``: no machine of these roofs makes the same sweeps in less.
    """

    seconds: float
    low: float
    high: float
    sweeps: int
    prompt_tokens: int
    gen_tokens: int
    lanes: Mapping[str, float] = field(default_factory=dict)
    bytes_read: float = 0.0
    preemptions: int = 0
    assumed: bool = True
    prefill_seconds: float = 0.0
    bound_seconds: float = 0.0
    first_token: FirstTokens = field(default_factory=FirstTokens)
    bytes_moved: Mapping[str, float] = field(default_factory=dict)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second of the job."""
        return _rate(self.prompt_tokens, self.seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens per second of the job."""
        return _rate(self.gen_tokens, self.seconds)

    @property
    def prefill_phase_tokens_per_second(self) -> float:
        """Prompt tokens per second of their own share of the time."""
        return _rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_phase_tokens_per_second(self) -> float:
        """Generated tokens per second of the rest."""
        return _rate(self.gen_tokens, self.seconds - self.prefill_seconds)

    @property
    def utilisation(self) -> dict[str, float]:
        """Lane -> share of the job in which it is busy."""
        return {lane: _rate(busy, self.seconds) for lane, busy in self.lanes.items()}

    @property
    def rows_per_sweep(self) -> float:
        """Mean rows of a sweep."""
        return (self.prompt_tokens + self.gen_tokens) / self.sweeps if self.sweeps else 0.0

    @property
    def bound_by(self) -> str:
        """The busiest lane, as ``cpu``, ``disk``, ``link`` or ``gpu``."""
        return max(self.lanes, key=lambda lane: self.lanes[lane]) if self.lanes else "cpu"


class Times(Protocol):
    """What is asked of a policy's sweeps: ``Prices``, or anything that answers the same."""

    @property
    def policy(self) -> Policy:
        """Whose sweeps they are."""

    def seconds(self, load: Load) -> float:
        """A steady sweep."""

    def bound(self, load: Load) -> float:
        """No machine does it in less."""

    def lanes(self, load: Load) -> Mapping[str, float] | LaneSeconds:
        """Busy seconds by lane."""

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        """Bytes by link or memory."""


class TimesOf(Protocol):
    """Times that depend on the load."""

    def of(self, load: Load) -> Times:
        """Those that hold for ``load``."""


def predict(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    workload: Workload,
    on_demand_rows: int = 0,
    kinds: Kinds | None = None,
    sketches: Sketches | None = None,
) -> Prediction:
    """How long ``workload`` takes under ``policy``; sweeps of at most ``on_demand_rows`` rows
    read routed experts only, as the engine's do.

    With assumed output lengths the interval covers outputs of half to 1.6 times the guess (within
    their limits); with realised ones only the model's own error.
    """
    kv = workload.prompt_tokens + workload.gen_tokens // 2
    mean_kv = kv // max(1, workload.requests)

    kinds = kinds or Kinds(model, pages)
    drawn = Sketches() if sketches is None else sketches

    def times_of(policy: Policy) -> Times:
        return price(model, pages, policy, hardware, drawn, mean_kv, kinds)

    times = FewRows(times_of(policy))
    if on_demand_rows:
        demand = times_of(replace(policy, schedule="on_demand"))
        times = FewRows(times_of(replace(policy, schedule="stream")), demand, on_demand_rows)
    return predict_with(times, workload, hardware)


def predict_with(
    times: FewRows,
    workload: Workload,
    hardware: Hardware,
    steps: int = STEPS,
    decisions: Decisions | None = None,
) -> Prediction:
    """The same with sweep times that are known already."""
    ends: list[float] = []
    if workload.assumed:
        ends = [
            job_seconds(times, _scaled(workload, scale), steps // 4, decisions)
            for scale in (_SHORTEST, _LONGEST)
        ]
    return with_interval(simulate(times, workload, steps, decisions), hardware, ends)


def with_interval(found: Prediction, hardware: Hardware, ends: Sequence[float] = ()) -> Prediction:
    """``found`` as earlier runs on ``hardware`` let expect it, with its interval: how far runs end
    from that, around it and around the seconds of ``ends``, jobs of other lengths."""
    longer = math.exp(hardware.bias)
    below, above = _error(hardware)
    seconds = [longer * each for each in (found.seconds, *ends)]
    return replace(
        found,
        seconds=seconds[0],
        low=min(seconds) * below,
        high=max(seconds) * above,
        prefill_seconds=longer * found.prefill_seconds,
        first_token=FirstTokens(*(longer * each for each in found.first_token)),
        lanes={lane: longer * busy for lane, busy in found.lanes.items()},
    )


def _error(hardware: Hardware) -> tuple[float, float]:
    """The ends of the interval over the prediction, lengths known: what runs on this machine
    showed; without any, a rule of thumb, upwards by as much as timings varied."""
    if hardware.error is not None:
        return math.exp(-hardware.error), math.exp(hardware.error)
    error = _MODEL_ERROR * (1 if hardware.measured else 2)
    return 1 - error, 1 + error + min(hardware.noise, 1.0)


@dataclass(frozen=True)
class FewRows:
    """Sweep times of a run: ``times``, or ``demand`` for sweeps of at most ``rows`` rows."""

    times: Times
    demand: Times | None = None
    rows: int = 0

    def of(self, load: Load) -> Times:
        """The times that hold for ``load``."""
        return self.demand if self.demand and load.rows <= self.rows else self.times


def simulate(
    times: FewRows, workload: Workload, steps: int = STEPS, decisions: Decisions | None = None
) -> Prediction:
    """One play of ``workload``; ``low`` and ``high`` equal ``seconds``.

    Costs about a microsecond per generated token, ``steps`` tokens at most, unless ``decisions``
    know the job under such limits. Raises LineError when a request cannot fit the policy's KV
    blocks.
    """
    decided = (decisions or Decisions()).of(times.times.policy, workload, steps)
    return _Job(times, decided).result(workload)


def job_seconds(
    times: FewRows, workload: Workload, steps: int, decisions: Decisions | None = None
) -> float:
    """``simulate(...).seconds``, without the rest."""
    decided = (decisions or Decisions()).of(times.times.policy, workload, steps)
    job = _Job(times, decided)
    return job.ledger.seconds + job.rest_seconds(workload)


class Ledger:
    """What the sweeps of a job add up to."""

    def __init__(self, times: TimesOf) -> None:
        self.seconds = self.prefill_seconds = 0.0
        self.sweeps = 0
        self._times = times
        self._counts: dict[Load, float] = {}
        self._seconds: dict[Load, float] = {}

    def add(self, load: Load) -> None:
        """A steady sweep."""
        if load not in self._seconds:
            self._seconds[load] = self._times.of(load).seconds(load)
        self.add_taking(load, self._seconds[load])

    def add_taking(self, load: Load, seconds: float) -> None:
        """A sweep of ``load`` that takes ``seconds``."""
        self.seconds += seconds
        self.prefill_seconds += seconds * load.chunk_rows / max(1, load.rows)
        self.sweeps += 1
        self._counts[load] = self._counts.get(load, 0) + 1

    def add_many(self, load: Load, count: float) -> None:
        """About ``count`` steady sweeps."""
        seconds = count * self._times.of(load).seconds(load)
        self.seconds += seconds
        self.prefill_seconds += seconds * load.chunk_rows / max(1, load.rows)
        self.sweeps += round(count)
        self._counts[load] = self._counts.get(load, 0) + count

    def prediction(self, workload: Workload, first_tokens: list[float]) -> Prediction:
        """The same as a Prediction; its interval is still to be drawn."""
        lanes: dict[str, float] = {}
        moved: dict[str, float] = {}
        bound = 0.0
        for load, count in self._counts.items():
            times = self._times.of(load)
            bound += count * times.bound(load)
            busy = times.lanes(load)
            _add(lanes, busy._asdict() if isinstance(busy, LaneSeconds) else busy, count)
            _add(moved, times.bytes_moved(load), count)
        return Prediction(
            seconds=self.seconds,
            low=self.seconds,
            high=self.seconds,
            sweeps=self.sweeps,
            prompt_tokens=workload.prompt_tokens,
            gen_tokens=workload.gen_tokens,
            lanes=lanes,
            bytes_read=moved.get(DISK, 0.0),
            assumed=workload.assumed,
            prefill_seconds=self.prefill_seconds,
            bound_seconds=min(bound, self.seconds),
            first_token=_first_tokens(first_tokens),
            bytes_moved=moved,
        )


class _Job:
    """The sweeps of a job, priced one after the other."""

    def __init__(self, times: FewRows, decided: Decided) -> None:
        self.decided = decided
        self.ledger = Ledger(times)
        self.ends: list[float] = []
        for load in decided.loads:
            self.ledger.add(load)
            self.ends.append(self.ledger.seconds)

    def rest_seconds(self, workload: Workload) -> float:
        """Of what was not played of ``workload``."""
        left = workload.gen_tokens - self.decided.part.gen_tokens
        return rest_seconds(self.decided.drawn, self.ends, left / self.decided.slices)

    def result(self, workload: Workload) -> Prediction:
        """The whole job: what was not played goes on as the middle of what was."""
        firsts = zip(self.ends, self.decided.first, strict=True)
        first_tokens = [seconds for seconds, count in firsts for _ in range(count)]
        found = self.ledger.prediction(workload, first_tokens)
        preemptions = self.decided.preemptions * self.decided.slices
        if self.decided.part.requests == workload.requests:
            return replace(found, preemptions=round(preemptions))
        return _longer(found, self.rest_seconds(workload), preemptions)


def _longer(found: Prediction, more: float, preemptions: float) -> Prediction:
    """``found`` for ``more`` seconds in proportion."""
    grown = (found.seconds + more) / found.seconds if found.seconds else 1.0
    seconds = found.seconds * grown
    return replace(
        found,
        seconds=seconds,
        low=seconds,
        high=seconds,
        sweeps=round(found.sweeps * grown),
        lanes={lane: busy * grown for lane, busy in found.lanes.items()},
        bytes_read=found.bytes_read * grown,
        preemptions=round(preemptions * grown),
        prefill_seconds=found.prefill_seconds * grown,
        bound_seconds=found.bound_seconds * grown,
        first_token=FirstTokens(*(at * grown for at in found.first_token)),
        bytes_moved={roof: count * grown for roof, count in found.bytes_moved.items()},
    )


def _add(totals: dict[str, float], found: Mapping[str, float], count: float) -> None:
    for name, amount in found.items():
        totals[name] = totals.get(name, 0.0) + count * amount


def _first_tokens(seconds: list[float]) -> FirstTokens:
    if not seconds:
        return FirstTokens()
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return FirstTokens(
        sum(ordered) / len(ordered), ordered[last // 2], ordered[-(-last * 99 // 100)]
    )


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0


def _scaled(workload: Workload, scale: float) -> Workload:
    pairs = zip(workload.gen_lens, workload.limits, strict=True)
    lengths = tuple(max(1, min(max(most, gen), round(gen * scale))) for gen, most in pairs)
    return replace(workload, gen_lens=lengths, max_lens=workload.limits)
