"""Policies worth comparing, each made to fit the budget exactly as the memory map counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.batching.blocks import blocks_for
from headrace.planner.job_estimate import JobShape
from headrace.planner.known import Known
from headrace.planner.memory_map import MemoryMap, arena_bytes, map_of_sizes
from headrace.planner.plan import Overrides
from headrace.planner.played import PlayedOverlap
from headrace.planner.residency import Residency
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.sizes import activation_sizes
from headrace.schedule.tally import Kinds
from headrace.specs.hardware import DISK, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

LEAST_SLOTS = 3
"""One slot in use, one being filled, one ready."""

MOST_ROWS = 4096
MOST_SEQS = 2048
ROWS_PER_MICRO_BATCH = 512
SMALL_TOKENS, SMALL_REQUESTS = 1000, 16
RESIDENT_ROWS = 512  # prompt rows beside decodes when nothing is read: enough for full speed
_NEAR = (0.5, 1.0, 2.0)  # times the sequences of a plan for nearly the same machine
_FREE_CHUNKS = 4  # of prompts in a sweep, where arithmetic sets no limit
_RING_SHARE = 0.5  # of what is left for weights, at most
_SPARED = 0.005  # of the pages that stream: as many may do so for the ring's sake


@dataclass(frozen=True)
class Situation:
    """All that a plan depends on. ``budget_bytes`` is for host memory, ``device_bytes`` for the
    accelerator's (None: all that it has), ``disk_bytes`` for weights on disk (None: enough).
    ``near`` is the policy planned for nearly the same machine, where one is known: it is tried, and
    numbers of sequences around its own. ``known`` goes along to situations that ``replace`` makes
    of this one."""

    model: ModelSpec
    pages: tuple[Page, ...]
    page_bytes: Mapping[int, int] | None
    hardware: Hardware
    workload: Workload
    budget_bytes: int
    overrides: Overrides = field(default_factory=Overrides)
    device_bytes: int | None = None
    disk_bytes: int | None = None
    near: Policy | None = None
    known: Known = field(default_factory=Known, compare=False, repr=False)

    @cached_property
    def residency(self) -> Residency:
        """Residency choices of this model."""
        return self.known.residency_of(self.model, self.pages, self.page_bytes)

    @cached_property
    def kinds(self) -> Kinds:
        """Its pages by kind."""
        return self.known.kinds_of(self.model, self.pages)

    @cached_property
    def longest_blocks(self) -> int:
        """Blocks of the longest request: fewer could never finish it."""
        return blocks_for(max(1, self.workload.longest), self.overrides.kv_block)

    @cached_property
    def mean_blocks(self) -> float:
        """KV blocks of a sequence at its expected end, on average."""
        ends = zip(self.workload.prompt_lens, self.workload.gen_lens, strict=True)
        block = self.overrides.kv_block
        blocks = [blocks_for(prompt + gen - 1, block) for prompt, gen in ends] or [1]
        return sum(blocks) / len(blocks)

    @cached_property
    def mean_kv(self) -> int:
        """Tokens a decode attends to, on average over the job."""
        job = self.workload
        return (job.prompt_tokens + job.gen_tokens // 2) // max(1, job.requests)

    @property
    def is_small(self) -> bool:
        """Whether the job is so short that single sweeps show, and plays cost next to nothing; of
        fewer requests there is little to choose."""
        job = self.workload
        return job.gen_tokens <= SMALL_TOKENS and job.requests >= SMALL_REQUESTS

    @cached_property
    def decode_kv(self) -> int:
        """Tokens a decode attends to, on average over all decodes of the job."""
        job = self.workload
        lens = zip(job.prompt_lens, job.gen_lens, strict=True)
        return sum(g * (p + (g - 1) // 2) for p, g in lens) // max(1, job.gen_tokens)

    def map_of(self, policy: Policy) -> MemoryMap:
        """What ``policy`` takes of the budget: ``memory_map``, its weights counted by kind."""
        cut = any(kind.page.role is Role.EXPERT_UP for kind in self.kinds.all)
        rows = self.kinds.rows_read(policy)
        sizes = activation_sizes(self.model, policy, cut=cut, rows=rows)
        weights = self.residency.bytes_held(policy.resident)
        streams = any(True for _ in self.kinds.streamed(policy))
        ring = policy.ring_slots * arena_bytes(policy.slot_bytes) if streams else 0
        return map_of_sizes(self.model, policy, sizes, self.budget_bytes, weights, ring)

    def plays(self, count: int) -> int:
        """How many plays are worth it: fewer around a plan that is known."""
        return count // 2 if self.near else count

    @cached_property
    def job(self) -> JobShape:
        """The job in means."""
        return JobShape.of(self.workload, self.decode_kv)

    def times_of(self, policy: Policy) -> SweepTimes:
        """Sweep times of ``policy``, overlap taken as perfect; the same ones each time."""
        if policy not in self._times:
            self._times[policy] = SweepTimes(
                self.model, self.pages, policy, self.hardware, kinds=self.kinds
            )
        return self._times[policy]

    def overlap_of(self, policy: Policy) -> PlayedOverlap:
        """How well lanes overlap under ``policy``; the same one each time."""
        if policy not in self._overlaps:
            self._overlaps[policy] = PlayedOverlap(
                self.model, self.pages, policy, self.hardware, self.mean_kv, kinds=self.kinds
            )
        return self._overlaps[policy]

    @cached_property
    def _times(self) -> dict[Policy, SweepTimes]:
        return {}

    @cached_property
    def _overlaps(self) -> dict[Policy, PlayedOverlap]:
        return {}


def smallest(at: Situation) -> Policy:
    """The policy that takes the fewest bytes: one sequence, as few resident pages as pay."""
    fixed = at.overrides
    rows = fixed.max_rows or fixed.chunk
    seqs = min(fixed.max_seqs or 1, rows)
    kv_blocks = max(fixed.kv_blocks or 0, at.longest_blocks)
    base = _policy(at, seqs, rows, kv_blocks)
    options = [with_residency(at, base, at.residency.everything(), 0)]
    if fixed.schedule != "resident":
        slots = max(fixed.ring_slots or LEAST_SLOTS, 1)
        options.append(with_residency(at, base, at.residency.smallest(slots), slots))
    return min(options, key=lambda policy: at.map_of(policy).total_bytes)


def candidates(at: Situation) -> Iterator[tuple[float, Policy]]:
    """Policies that fit, each with a bound of all jobs with as many sequences at once, the least
    bound first; ``smallest`` last, if it fits."""
    bounds = _Bounds(at)
    counts = sorted(_sequence_counts(at), key=lambda seqs: (bounds.of(seqs), -seqs))
    for seqs in counts:
        for free in (False, True):
            policy = fitted(at, seqs, free=free)
            if policy is not None:
                yield bounds.of(seqs), policy
            if policy is None or policy.compute_rows >= policy.max_seqs + policy.chunk:
                break
    least = smallest(at)
    if at.map_of(least).total_bytes <= at.budget_bytes:
        yield bounds.of(least.max_seqs), least


def least_seconds(at: Situation) -> float:
    """No policy of the processor alone makes the job shorter, unless it reads on demand."""
    bounds = _Bounds(at)
    return min(bounds.of(seqs) for seqs in _sequence_counts(at))


class _Bounds:
    """Bounds of jobs by sequences at once, before anything is decided: every roof at its full
    rate, and the whole budget full of weights."""

    def __init__(self, at: Situation) -> None:
        self._job = at.workload
        self._rows = at.overrides.max_rows or MOST_ROWS
        self._beside = _FREE_CHUNKS * at.overrides.chunk
        whole = with_residency(at, _policy(at, 1, 1, 1), at.residency.everything(), 0)
        policy = replace(whole, max_rows=1 << 20, micro_batches=1)
        self._times = SweepTimes(at.model, at.pages, policy, at.hardware.ideal, kinds=at.kinds)
        total = sum(page.bytes for page in at.residency.streamable)
        streamed = max(0, total - at.budget_bytes)
        self._disk = streamed / self._times.disk_rate if streamed else 0.0

    def of(self, seqs: int) -> float:
        """No job with ``seqs`` sequences at once takes less. A sweep of more rows takes less per
        row, and of more draws less per draw."""
        job, rows = self._job, max(self._rows, seqs + self._beside)
        drawn = self._sweep(Load(seqs, seqs, samples=seqs)) * job.gen_tokens / seqs
        return max(drawn, self._sweep(Load(rows)) * (job.prompt_tokens + job.gen_tokens) / rows)

    def _sweep(self, load: Load) -> float:
        return max(self._times.lanes(load).cpu, self._disk)


def fitted(
    at: Situation, seqs: int, most_rows: int | None = None, *, free: bool = False
) -> Policy | None:
    """The best use of the budget for ``seqs`` sequences at once, in sweeps of ``most_rows`` or as
    many as pay; None if they do not fit. Where arithmetic is the bound at any number of rows, it
    may pay to let prompts fill sweeps all the same (``free``): weights are read less often.

    Ring and rows depend on what streams, and take of its room: they are refined once.
    """
    rows = at.overrides.max_rows or seqs + at.overrides.chunk
    if rows < seqs:
        return None
    policy = _fill(at, _policy(at, seqs, rows, kv_blocks(at, seqs)), LEAST_SLOTS)
    if policy is None:
        return None
    times = at.times_of(policy)
    wanted = _wanted_rows(at, policy, times, free)
    if most_rows is not None:
        wanted = max(rows, min(most_rows, MOST_ROWS))
    larger = replace(policy, max_rows=wanted, micro_batches=_micro_batches(at, wanted))
    policy = _fill(at, larger, _wanted_slots(at, policy, times)) or policy
    limit = policy.max_rows if free else _compute_rows(at, policy)
    return _with_roomy_kv(at, replace(policy, compute_rows=limit))


def filled(at: Situation, rows: int) -> Policy | None:
    """A policy of ``rows`` rows per sweep that may all draw, with as many pages resident as fit;
    None if they do not. Counts bytes only: no rates are needed."""
    return _fill(at, _policy(at, rows, rows, kv_blocks(at, 1)), LEAST_SLOTS)


def _with_roomy_kv(at: Situation, policy: Policy) -> Policy:
    """Where all weights stay anyway, spare memory holds requests at their limits."""
    if policy.slot_bytes or at.overrides.kv_blocks:
        return policy
    job = at.workload
    ends = zip(job.prompt_lens, job.limits, strict=True)
    largest = sorted((blocks_for(p + most - 1, policy.kv_block) for p, most in ends), reverse=True)
    roomy = replace(policy, kv_blocks=max(policy.kv_blocks, sum(largest[: policy.max_seqs])))
    return roomy if at.map_of(roomy).total_bytes <= at.budget_bytes else policy


def with_residency(
    at: Situation, policy: Policy, resident: frozenset[int], ring_slots: int
) -> Policy:
    """``policy`` with these pages resident, its schedule and ring to match."""
    slot = at.residency.slot_bytes(resident)
    wanted = at.overrides.schedule
    schedule = (wanted if wanted != "resident" else None) or "stream"
    if not slot and wanted in (None, "resident"):
        schedule = "resident"
    return replace(
        policy,
        schedule=schedule,
        resident=resident,
        ring_slots=ring_slots if slot else 0,
        slot_bytes=slot,
    )


def most_seqs(at: Situation) -> int:
    """Sequences at once: no more than there are, or fit a sweep."""
    return max(1, min(at.workload.requests, at.overrides.max_rows or MOST_SEQS, MOST_SEQS))


def _sequence_counts(at: Situation) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to all requests of the job at once."""
    if at.overrides.max_seqs:
        return [at.overrides.max_seqs]
    most = most_seqs(at)
    if at.near:
        return counts_near(at.near, most)
    counts = {most} | {n for p in range(12) for n in (2**p, 3 * 2**p) if n <= most}
    return sorted(counts, reverse=True)


def counts_near(policy: Policy, most: int) -> list[int]:
    """Numbers of sequences around those of ``policy``, and ``most``; most first."""
    near = {min(most, max(1, round(policy.max_seqs * factor))) for factor in _NEAR}
    return sorted(near | {most}, reverse=True)


def _policy(at: Situation, seqs: int, rows: int, kv_blocks: int) -> Policy:
    fixed = at.overrides
    return Policy(
        schedule="stream",
        max_rows=rows,
        max_seqs=seqs,
        micro_batches=_micro_batches(at, rows),
        chunk=fixed.chunk,
        disk_lanes=fixed.disk_lanes or _disk_lanes(at.hardware),
        kv_blocks=kv_blocks,
        kv_block=fixed.kv_block,
        kv_dtype=fixed.kv_dtype,
        threads=fixed.threads,
        kernels=fixed.kernels,
        activations=fixed.activations,
    )


def _micro_batches(at: Situation, rows: int) -> int:
    """As many as bring their rows nearest to ROWS_PER_MICRO_BATCH."""
    near = (rows + ROWS_PER_MICRO_BATCH // 2) // ROWS_PER_MICRO_BATCH
    return at.overrides.micro_batches or max(1, near)


def _disk_lanes(hardware: Hardware) -> int:
    """Enough requests in flight to reach the disk's rate; two also hide the gaps between."""
    if not math.isfinite(hardware.lane_rate):
        return 2
    return max(2, min(4, math.ceil(hardware.roofs[DISK] / hardware.lane_rate - 0.1)))


def kv_blocks(at: Situation, seqs: int) -> int:
    """Blocks for ``seqs`` sequences at their expected end; never too few for the longest."""
    if at.overrides.kv_blocks:
        return max(at.overrides.kv_blocks, at.longest_blocks)
    return max(math.ceil(at.mean_blocks * seqs), at.longest_blocks)


def _fill(at: Situation, policy: Policy, slots: int) -> Policy | None:
    """``policy`` with as many pages resident as fit; a ring of ``slots``, or fewer if they
    would take too much of the room."""
    whole = with_residency(at, policy, at.residency.everything(), 0)
    if at.map_of(whole).total_bytes <= at.budget_bytes:
        return whole
    if at.overrides.schedule == "resident":
        return None
    weightless = at.map_of(replace(policy, resident=frozenset(), ring_slots=1, slot_bytes=0))
    room = weightless.spare_bytes + weightless.parts["resident weights"]
    chosen = at.overrides.ring_slots
    counts = [chosen] if chosen else _halvings(max(slots, LEAST_SLOTS))
    for count in counts:
        resident = at.residency.fill(room, count)
        if resident is None:
            continue
        ring = count * at.residency.slot_bytes(resident)
        if ring <= _RING_SHARE * room or count == counts[-1]:
            return _in_rounds(at, with_residency(at, policy, resident, count))
    return None


def _in_rounds(at: Situation, policy: Policy) -> Policy:
    """``policy`` with a ring of which every slot takes as many of a sweep's pages, where a quarter
    of its slots and _SPARED of the pages that stream make that possible. Then all sweeps have one
    list of tasks; else there is one for each place of the ring, and to make one costs other threads
    the interpreter for tens of milliseconds (of many pages more of them than are kept)."""
    streamed = sum(len(ids) for _, ids in at.kinds.streamed(policy))
    most = policy.ring_slots
    if not streamed or not most:
        return policy
    least = most if at.overrides.ring_slots else max(LEAST_SLOTS, -(-3 * most // 4))
    more, slots = min((-streamed % n, -n) for n in range(min(least, most), most + 1))
    held = [p.id for p in at.residency.experts if p.id in policy.resident]
    if more > min(_SPARED * streamed, len(held)):
        return policy
    through = [i for i in held if at.residency.bytes_of[i] <= policy.slot_bytes][:more]
    return replace(policy, ring_slots=-slots, resident=policy.resident.difference(through))


def _halvings(slots: int) -> list[int]:
    """``slots``, half of it, and so on; LEAST_SLOTS last."""
    halves = [slots >> i for i in range(slots.bit_length())]
    return [n for n in halves if n > LEAST_SLOTS] + [LEAST_SLOTS]


def _wanted_rows(at: Situation, policy: Policy, times: SweepTimes, free: bool) -> int:
    if at.overrides.max_rows:
        return at.overrides.max_rows
    least = policy.max_seqs + policy.chunk
    if free and policy.slot_bytes:
        least = policy.max_seqs + _FREE_CHUNKS * policy.chunk
    if not policy.slot_bytes:
        return min(max(least, policy.max_seqs + RESIDENT_ROWS), max(MOST_ROWS, least))
    return max(least, min(times.balanced_rows(MOST_ROWS), MOST_ROWS))


def _compute_rows(at: Situation, policy: Policy) -> int:
    """n_real, or no limit below the rows of a sweep when nothing streams."""
    if not policy.slot_bytes:
        return policy.max_rows
    return min(at.times_of(policy).balanced_rows(MOST_ROWS), policy.max_rows)


def _wanted_slots(at: Situation, policy: Policy, times: SweepTimes) -> int:
    """Slots for reads to go on while nothing is multiplied with streamed pages: head, sampling
    and the first layer's attention (the tail of a sweep), at the disk's rate."""
    if not policy.slot_bytes:
        return 0
    load = Load(policy.max_seqs, policy.max_seqs * at.mean_kv, samples=policy.max_seqs)
    cpu, disk = times.lanes(load)
    if cpu > 2 * disk:
        return LEAST_SLOTS
    tail = times.tail_seconds(load)
    streamed = [p for p in at.residency.streamable if p.id not in policy.resident]
    mean = sum(at.residency.bytes_of[p.id] for p in streamed) / len(streamed)
    slots = math.ceil(tail * times.disk_rate / mean) + policy.disk_lanes + 1
    return max(LEAST_SLOTS, min(slots, len(streamed)))
