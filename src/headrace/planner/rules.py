"""Choose a policy for a CPU and its disk by fixed rules and a play of the whole job.

All resident if everything fits; else stream through a ring, what fits staying resident. The
number of sequences at once decides how memory divides between KV cache and weights, so several
are tried and the one with the shortest predicted job wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from headrace.errors import UsageError
from headrace.planner.candidates import Situation, candidates, fitted, most_seqs, smallest
from headrace.planner.job_estimate import course_of
from headrace.planner.nearest import host_refusal
from headrace.planner.plan import Overrides, Plan
from headrace.planner.prices import HostPrices
from headrace.planner.simulate import FewRows, Prediction, job_seconds, predict_with
from headrace.planner.sweeps import Load, SweepTimes
from headrace.planner.tail import on_demand_rows
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.units import format_bytes
from headrace.specs.workload import Workload

_RANKING_STEPS = 20_000
_PLAYED = 5
"""Policies that are played of a long job: those that its course makes the shortest."""

_FAR, _OFF = 1.3, 1.1
"""What the course makes so much longer than the best is not played at all; and by how much it may
be off."""

_ROUNDS = 3
_FEW = 8  # requests: of fewer there is nothing to choose near the best
_COUNTS = (0.6, 0.75, 0.8, 0.87, 0.93, 1.07, 1.15, 1.3, 1.6)
_BESIDE = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 0.97, 1.5, 2.0, 3.0)
"""Factors of the sequences, and of the prompt rows, of policies near one."""

_GAIN = 0.998  # what cannot be faster than this share of the best so far is not played
_FREE = Overrides()
_TRUST = 1.005  # nothing that waits for a disk is preferred for less
BUSY = 0.25
"""Noise of a measurement above which the plan says that the machine is not quiet."""


def make_plan(
    model: ModelSpec,
    pages: tuple[Page, ...],
    page_bytes: Mapping[int, int] | None,
    hardware: Hardware,
    workload: Workload,
    budget_bytes: int,
    overrides: Overrides = _FREE,
) -> Plan:
    """The plan for ``workload`` within ``budget_bytes``.

    ``page_bytes`` is the memory each page takes (id -> bytes, from the page table); without it
    estimates. Raises BudgetError with the smallest budget that works (which then does), and
    UsageError for an override that cannot be honoured.
    """
    return best_plan(
        Situation(model, pages, page_bytes, hardware, workload, budget_bytes, overrides)
    )


def best_plan(at: Situation) -> Plan:
    """``make_plan`` for all that it depends on."""
    check(at)
    policy = fastest(at)
    assert policy is not None, "the smallest policy fits: its budget was checked"
    return decided(at, policy)


def check(at: Situation) -> None:
    """Raise what ``best_plan`` raises for a situation without a plan."""
    _check(at.overrides, at)
    if at.map_of(smallest(at)).total_bytes > at.budget_bytes:
        raise host_refusal(at)


def decided(at: Situation, policy: Policy) -> Plan:
    """The plan that runs ``policy``, few rows on demand where that is faster."""
    threshold = 0
    if policy.schedule == "stream" and at.overrides.schedule is None:
        threshold = on_demand_rows(at.model, at.pages, policy, at.hardware, at.mean_kv, at.kinds)
    plan = plan_of(at, policy, threshold)
    if plan.prediction.rows_per_sweep <= threshold:
        return replace(plan, policy=replace(policy, schedule="on_demand"))
    return plan


def plan_of(at: Situation, policy: Policy, on_demand_rows: int) -> Plan:
    """What running ``policy`` takes and does, whoever chose it."""
    return Plan(
        policy=policy,
        memory=at.map_of(policy),
        prediction=prediction(at, policy, on_demand_rows),
        on_demand_rows=on_demand_rows,
        smallest_bytes=at.map_of(smallest(at)).total_bytes,
        notes=_notes(at, policy, on_demand_rows),
    )


def prediction(at: Situation, policy: Policy, on_demand_rows: int = 0) -> Prediction:
    """``simulate.predict`` of ``policy``, with what is known of it."""

    def times_of(schedule: str) -> HostPrices:
        named = replace(policy, schedule=schedule)
        overlap = at.overlap_of(named)
        return HostPrices(at.model, at.pages, named, at.hardware, kinds=at.kinds, overlap=overlap)

    times = FewRows(times_of(policy.schedule))
    if on_demand_rows:
        times = FewRows(times_of("stream"), times_of("on_demand"), on_demand_rows)
    return predict_with(times, at.workload, at.hardware, decisions=at.known.decisions)


def fastest(at: Situation, below: float = math.inf) -> Policy | None:
    """The candidate with the shortest job. None if no job takes less than ``below`` seconds."""
    best: Policy | None = None
    for policy in _promising(at, below):
        seconds = _seconds(at, policy, below)
        if seconds < below:
            below, best = seconds, policy
    return _refined(at, best, below) if best is not None else None


def _promising(at: Situation, below: float) -> Iterable[Policy]:
    """Candidates to play: none whose bound is longer than ``below`` or than the best course."""
    found: list[Policy] = []
    shortest = below / _OFF
    for least, policy in candidates(at):
        if least >= min(below, _OFF * shortest):
            break  # and so are all that follow
        found.append(policy)
        if not at.is_small:
            shortest = min(shortest, _about(at, policy))
    return [*_known(at), *_few(at, found)]


def _known(at: Situation) -> list[Policy]:
    """The policy that is known of a machine like this one, if it fits."""
    near = at.near
    if near is None or near.on_device:
        return []
    free = near.compute_rows >= near.max_rows
    found = fitted(at, near.max_seqs, near.max_rows, free=free)
    return [found] if found else []


def _few(at: Situation, policies: Iterable[Policy]) -> list[Policy]:
    """Those worth a play. Of a short job the course is no guide."""
    found = list(policies)
    if at.is_small or not found:
        return found
    found.sort(key=lambda policy: _about(at, policy))
    least = _about(at, found[0])
    return [policy for policy in found[: at.plays(_PLAYED)] if _about(at, policy) <= _FAR * least]


def _about(at: Situation, policy: Policy) -> float:
    """The job's course, sweeps overlapping perfectly."""
    return course_of(at.job, policy).seconds(at.times_of(policy).seconds)


def _refined(at: Situation, best: Policy, seconds: float) -> Policy:
    """The best of what is near, as long as that is better: other numbers of sequences, or of
    prompt rows beside them."""
    rounds = _ROUNDS if at.is_small else 1
    for _ in range(rounds if at.workload.requests >= _FEW else 0):
        near = _few(at, _near(at, best))
        found = [(_seconds(at, policy, seconds), policy) for policy in near]
        least, policy = min(found, key=lambda pair: pair[0], default=(math.inf, best))
        if least >= _GAIN * seconds:
            break
        seconds, best = least, policy
    return best


def _near(at: Situation, policy: Policy) -> Iterator[Policy]:
    fixed = at.overrides
    most, extra = most_seqs(at), policy.max_rows - policy.max_seqs
    tried = {(policy.max_seqs, policy.max_rows)}
    counts = () if fixed.max_seqs else _COUNTS[0 if at.is_small else 1 :: 1 if at.is_small else 3]
    rows = () if fixed.max_rows else _BESIDE[:: 1 if at.is_small else 4]
    choices = [(round(policy.max_seqs * factor), 1.0) for factor in counts]
    choices += [(policy.max_seqs, factor) for factor in rows]
    for seqs, factor in choices:
        seqs = max(1, min(most, seqs))
        beside = max(fixed.chunk, round(extra * factor))
        if (seqs, seqs + beside) not in tried and (fixed.max_rows or seqs + 1) > seqs:
            tried.add((seqs, seqs + beside))
            free = policy.compute_rows >= policy.max_rows
            found = fitted(at, seqs, None if fixed.max_rows else seqs + beside, free=free)
            if found is not None:
                yield found


def _seconds(at: Situation, policy: Policy, below: float) -> float:
    """About the job's seconds; infinite if they cannot be clearly fewer than ``below``."""
    times = at.times_of(policy)
    if _bound(at, times) >= _GAIN * below:
        return math.inf
    overlap = at.overlap_of(policy)
    if at.is_small:
        seconds = _job_seconds(at, replace(times, overlap=overlap))
    else:
        typical = course_of(at.job, policy).typical.rows
        seconds = _job_seconds(at, times) * overlap(typical)
    return seconds * (_TRUST if policy.slot_bytes else 1.0)


def _job_seconds(at: Situation, times: SweepTimes) -> float:
    return job_seconds(FewRows(times), at.workload, _RANKING_STEPS, at.known.decisions)


def _bound(at: Situation, times: SweepTimes) -> float:
    """No job takes less: a sweep has at most max_rows rows and draws at most max_seqs tokens, and
    costs the less per row, and per draw, the more it has of them. Attention of prompts is free."""
    job, policy = at.workload, times.policy
    seqs, rows = policy.max_seqs, policy.max_rows
    drawing = times.lanes(Load(seqs, seqs * at.decode_kv, samples=seqs))
    sweeps, full = job.gen_tokens / seqs, times.lanes(Load(rows))
    beside = drawing.cpu - times.lanes(Load(seqs, seqs)).cpu  # attention and head of the draws
    filled = (job.prompt_tokens + job.gen_tokens) / rows
    return max(
        sweeps * drawing.busiest, filled * full.disk, filled * full.cpu + sweeps * max(0.0, beside)
    )


def _check(overrides: Overrides, at: Situation) -> None:
    most = overrides.max_rows
    if most is not None and (overrides.max_seqs or 1) > most:
        raise UsageError(
            "more sequences than rows in a sweep",
            expected=f"at most {most} sequences",
            got=overrides.max_seqs,
        )
    if overrides.ring_slots is not None and overrides.ring_slots < 2:
        raise UsageError("ring slots", expected="at least 2", got=overrides.ring_slots)
    if overrides.kv_blocks is not None and overrides.kv_blocks < at.longest_blocks:
        raise UsageError(
            "KV blocks for the longest request",
            expected=f"at least {at.longest_blocks}",
            got=overrides.kv_blocks,
        )


def _notes(at: Situation, policy: Policy, threshold: int) -> tuple[str, ...]:
    experts = at.residency.experts
    held = sum(1 for p in experts if p.id in policy.resident)
    notes = [f"{held} of {len(experts)} expert pages resident"]
    if policy.schedule == "resident":
        return ("everything fits: nothing is read during the run",)
    streamed = [p for p in at.residency.streamable if p.id not in policy.resident]
    notes.append(
        f"{format_bytes(sum(p.bytes for p in streamed))} read per sweep through "
        f"{policy.ring_slots} slots of {format_bytes(policy.slot_bytes)}"
    )
    notes.append(f"arithmetic hides behind reads up to {policy.compute_rows} rows in a sweep")
    if threshold:
        notes.append(f"sweeps of at most {threshold} rows read routed experts only")
    if at.hardware.noise > BUSY:
        notes.append(
            f"the machine is busy: timings varied by {at.hardware.noise:.0%} while measuring it"
        )
    if not at.hardware.measured:
        notes.append("the machine's rates are stock figures, not measured here")
    return tuple(notes)
