"""Play a whole job: the engine's own batcher decides, sweep times come from ``SweepTimes``.

A job of very many tokens is played as a slice: a fraction of its requests on the same fraction
of rows, places and KV blocks. Sweeps then number the same, each standing for a full one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from headrace.batching.batcher import Batcher
from headrace.batching.choice import Choice
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from headrace.planner.played import PlayedOverlap
from headrace.planner.sweeps import LaneSeconds, Load, SweepTimes
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

STEPS = 400_000
"""Tokens generated one by one in a simulation, before only a slice of the job is played."""

_MODEL_ERROR = 0.10  # of a measured machine; stock figures are trusted half as much
_SHORTEST, _LONGEST = 0.5, 1.6  # assumed generation lengths over those of the interval's ends


@dataclass(frozen=True)
class Prediction:
    """What a job will take. ``low`` and ``high`` bound ``seconds``; ``assumed`` says that
    output lengths were a guess. ``lanes`` holds busy seconds. Rates are over all of the job:
    prompt and generated tokens by ``seconds``."""

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

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second of the job."""
        return self.prompt_tokens / self.seconds if self.seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens per second of the job."""
        return self.gen_tokens / self.seconds if self.seconds else 0.0

    @property
    def rows_per_sweep(self) -> float:
        """Mean rows of a sweep."""
        return (self.prompt_tokens + self.gen_tokens) / self.sweeps if self.sweeps else 0.0

    @property
    def bound_by(self) -> str:
        """The busiest lane, ``cpu`` or ``disk``."""
        return max(self.lanes, key=lambda lane: self.lanes[lane]) if self.lanes else "cpu"


def predict(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    workload: Workload,
    on_demand_rows: int = 0,
) -> Prediction:
    """How long ``workload`` takes under ``policy``; sweeps of at most ``on_demand_rows`` rows
    read routed experts only, as the engine's do.

    With assumed output lengths the interval covers outputs of half to 1.6 times the guess (within
    their limits); with realised ones only the model's own error.
    """
    kv = workload.prompt_tokens + workload.gen_tokens // 2
    mean_kv = kv // max(1, workload.requests)

    def times_of(policy: Policy) -> SweepTimes:
        overlap = PlayedOverlap(model, pages, policy, hardware, mean_kv)
        return SweepTimes(model, pages, policy, hardware, overlap)

    times = FewRows(times_of(policy))
    if on_demand_rows:
        demand = times_of(replace(policy, schedule="on_demand"))
        times = FewRows(times_of(replace(policy, schedule="stream")), demand, on_demand_rows)
    best = simulate(times, workload)
    below, above = _error(hardware)
    low, high = best.seconds * below, best.seconds * above
    if workload.assumed:
        ends = [
            simulate(times, _scaled(workload, scale), STEPS // 8).seconds
            for scale in (_SHORTEST, _LONGEST)
        ]
        low = min(low, *(end * below for end in ends))
        high = max(high, *(end * above for end in ends))
    return replace(best, low=low, high=high)


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

    times: SweepTimes
    demand: SweepTimes | None = None
    rows: int = 0

    def of(self, load: Load) -> SweepTimes:
        """The times that hold for ``load``."""
        return self.demand if self.demand and load.rows <= self.rows else self.times


def simulate(times: FewRows, workload: Workload, steps: int = STEPS) -> Prediction:
    """One play of ``workload``; ``low`` and ``high`` equal ``seconds``.

    Costs about a microsecond per generated token, ``steps`` tokens at most. Raises LineError
    when a request cannot fit the policy's KV blocks.
    """
    slices = _slices(workload, times.times.policy, steps)
    job = _Job(times, slices)
    job.add(workload)
    while job.batcher.has_work:
        job.step()
    return job.result(workload)


class _Job:
    def __init__(self, times: FewRows, slices: int) -> None:
        self.times = times
        self.slices = slices
        self.batcher = Batcher(_sliced(Limits.of(times.times.policy), slices))
        self.ends: dict[int, int] = {}
        self.seconds = self.cpu = self.disk = 0.0
        self._known: dict[Load, tuple[float, LaneSeconds]] = {}

    def add(self, workload: Workload) -> None:
        lengths = zip(workload.prompt_lens, workload.gen_lens, workload.limits, strict=True)
        for i, (prompt, gen, most) in enumerate(lengths):
            if i % self.slices == 0:
                request = Request(str(i), range(prompt), max(most, gen))
                for sequence in self.batcher.add(request):
                    self.ends[sequence.id] = gen

    def step(self) -> None:
        choice = self.batcher.next_choice()
        seconds, lanes = self._cost(self._load(choice))
        self.seconds += seconds
        self.cpu += lanes.cpu
        self.disk += lanes.disk
        drawn = [*choice.decodes, *(s for s, n in choice.chunks if s.computed + n == s.length)]
        ends = self.ends
        finished = {s.id for s in drawn if len(s.generated) + 1 >= ends[s.id]}
        self.batcher.commit_choice(choice, dict.fromkeys([s.id for s in drawn], 0), finished)

    def result(self, workload: Workload) -> Prediction:
        counters = self.batcher.counters
        disk_bytes = self.disk * self.times.times.disk_rate
        return Prediction(
            seconds=self.seconds,
            low=self.seconds,
            high=self.seconds,
            sweeps=counters.sweeps,
            prompt_tokens=workload.prompt_tokens,
            gen_tokens=workload.gen_tokens,
            lanes={"cpu": self.cpu, "disk": self.disk},
            bytes_read=disk_bytes,
            preemptions=counters.preemptions * self.slices,
            assumed=workload.assumed,
        )

    def _cost(self, load: Load) -> tuple[float, LaneSeconds]:
        if load not in self._known:
            times = self.times.of(load)
            self._known[load] = (times.seconds(load), times.lanes(load))
        return self._known[load]

    def _load(self, choice: Choice) -> Load:
        """The full machine's load, its KV rounded to 6 % so that loads repeat."""
        n = self.slices
        decodes, chunks = len(choice.decodes), choice.chunks
        kv = sum([s.computed for s in choice.decodes]) + decodes
        rows = sum([n for _, n in chunks])
        chunk_kv = sum([s.computed + n for s, n in chunks]) // max(1, len(chunks))
        drawn = choice.samples
        return Load(decodes * n, _rounded(kv * n), rows * n, _rounded(chunk_kv), drawn * n)


def _slices(workload: Workload, policy: Policy, steps: int) -> int:
    """How thin a slice stays within ``steps``, keeping 16 sequences at once and 64 in all."""
    wanted = -(-workload.gen_tokens // steps)
    blocks = -(-workload.longest // policy.kv_block)
    most = min(policy.max_seqs // 16, workload.requests // 64, policy.kv_blocks // (4 * blocks))
    return max(1, min(wanted, most))


def _sliced(limits: Limits, slices: int) -> Limits:
    if slices == 1:
        return limits
    return replace(
        limits,
        max_rows=max(limits.max_rows // slices, limits.max_seqs // slices + 1),
        max_seqs=limits.max_seqs // slices,
        kv_blocks=limits.kv_blocks // slices,
        micro_batches=1,
        chunk=max(1, limits.chunk // slices),
        compute_rows=max(1, limits.compute_rows // slices),
    )


def _scaled(workload: Workload, scale: float) -> Workload:
    pairs = zip(workload.gen_lens, workload.limits, strict=True)
    lengths = tuple(max(1, min(max(most, gen), round(gen * scale))) for gen, most in pairs)
    return replace(workload, gen_lens=lengths, max_lens=workload.limits)


def _rounded(count: int) -> int:
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step
