"""A job divided into sweeps by the engine's own batcher, before anything is priced.

What it decides depends on the limits of a policy, not on how long sweeps take: policies that share
their limits, and machines that run them, share one play.

A job of very many tokens is played as a slice: a fraction of its requests on the same fraction
of rows, places and KV blocks. Sweeps then number the same, each standing for a full one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from headrace.batching.batcher import Batcher
from headrace.batching.choice import Choice
from headrace.batching.limits import Limits
from headrace.batching.request import Request
from headrace.planner.sweeps import Load
from headrace.planner.thinning import part_of, sample
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

_SWEEP_TOKENS = 12  # that take as long to play as what a sweep costs whatever is in it


@dataclass(frozen=True)
class Decided:
    """The sweeps of ``part`` of a job, in order: the ``loads`` of the full machine; ``drawn``
    tokens of the slice by the end of each, and how many sequences draw their ``first`` in it.
    One slice of ``slices`` was played; ``preemptions`` are its own."""

    part: Workload
    loads: tuple[Load, ...]
    drawn: tuple[int, ...]
    first: tuple[int, ...]
    slices: float
    preemptions: int


@dataclass
class Decisions:
    """What was decided so far. Give the same one to every play of a search."""

    _known: dict[tuple[Limits, Workload, int], Decided] = field(default_factory=dict, repr=False)

    def of(self, policy: Policy, workload: Workload, steps: int) -> Decided:
        """``workload`` under ``policy``: at most about ``steps`` tokens are played one by one.

        Costs about a microsecond per token the first time. Raises LineError when a request
        cannot fit the policy's KV blocks."""
        limits = replace(Limits.of(policy), micro_batches=1, spread=False)
        key = limits, workload, steps
        if key not in self._known:
            self._known[key] = _decide(limits, workload, steps)
        return self._known[key]


def rounded(count: int) -> int:
    """To the nearest of 16 steps per doubling."""
    step = 1 << max(0, count.bit_length() - 5)
    return (count + step // 2) // step * step


def _decide(limits: Limits, workload: Workload, steps: int) -> Decided:
    slices = _slices(limits, workload, steps)
    places = min(limits.max_seqs, workload.requests)
    tokens = steps * slices / (1 + _SWEEP_TOKENS / max(1, places))
    part = part_of(workload, places, round(tokens))
    job = _Job(limits, part, slices)
    while job.batcher.has_work:
        job.step()
    counters = job.batcher.counters
    return Decided(
        part,
        tuple(job.loads),
        tuple(job.drawn),
        tuple(job.first),
        job.slices,
        counters.preemptions,
    )


class _Job:
    def __init__(self, limits: Limits, workload: Workload, slices: int) -> None:
        part = workload
        if slices > 1:
            part = sample(workload, -(-workload.requests // slices))
        self.slices = workload.requests / max(1, part.requests)
        self.batcher = Batcher(_sliced(limits, self.slices))
        self.loads: list[Load] = []
        self.drawn: list[int] = []
        self.first: list[int] = []
        self._ends: dict[int, int] = {}
        self._add(part)

    def _add(self, part: Workload) -> None:
        lengths = zip(part.prompt_lens, part.gen_lens, part.limits, strict=True)
        for i, (prompt, gen, most) in enumerate(lengths):
            request = Request(str(i), range(prompt), max(most, gen))
            for sequence in self.batcher.add(request):
                self._ends[sequence.id] = gen

    def step(self) -> None:
        choice = self.batcher.next_choice()
        ended = [s for s, n in choice.chunks if s.computed + n == s.length]
        drawn = [*choice.decodes, *ended]
        self.loads.append(self._load(choice, len(drawn)))
        self.first.append(sum([not s.generated for s in ended]))
        ends = self._ends
        finished = {s.id for s in drawn if len(s.generated) + 1 >= ends[s.id]}
        self.batcher.commit_choice(choice, dict.fromkeys([s.id for s in drawn], 0), finished)
        self.drawn.append(self.batcher.counters.sampled_tokens)

    def _load(self, choice: Choice, drawn: int) -> Load:
        """The full machine's load, rounded to 3 % so that loads repeat."""
        n, decodes, chunks = self.slices, len(choice.decodes), choice.chunks
        kv = sum([s.computed for s in choice.decodes]) + decodes
        rows = sum([rows for _, rows in chunks])
        chunk_kv = sum([s.computed + rows for s, rows in chunks]) // max(1, len(chunks))
        return Load(
            rounded(round(decodes * n)),
            rounded(round(kv * n)),
            rounded(round(rows * n)),
            rounded(chunk_kv),
            rounded(round(drawn * n)),
        )


def _slices(limits: Limits, workload: Workload, steps: int) -> int:
    """How thin a slice stays within ``steps``, keeping 16 sequences at once and 64 in all."""
    wanted = -(-workload.gen_tokens // steps)
    blocks = -(-workload.longest // limits.kv_block)
    most = min(limits.max_seqs // 16, workload.requests // 64, limits.kv_blocks // (4 * blocks))
    return max(1, min(wanted, most))


def _sliced(limits: Limits, slices: float) -> Limits:
    """Room for a ``slices``-th of the requests; if all of them fit at once, so does the part."""
    if slices == 1:
        return limits
    seqs = math.ceil(limits.max_seqs / slices - 1e-9)
    return replace(
        limits,
        max_rows=max(int(limits.max_rows / slices), seqs + 1),
        max_seqs=seqs,
        kv_blocks=math.ceil(limits.kv_blocks / slices - 1e-9),
        chunk=max(1, int(limits.chunk / slices)),
        compute_rows=max(1, int(limits.compute_rows / slices)),
    )
