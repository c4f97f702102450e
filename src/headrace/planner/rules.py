"""Choose a policy for a CPU and its disk by fixed rules and a play of the whole job.

All resident if everything fits; else stream through a ring, what fits staying resident. The
number of sequences at once decides how memory divides between KV cache and weights, so several
are tried and the one with the shortest predicted job wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headrace.errors import BudgetError, UsageError
from headrace.planner.candidates import Situation, candidates, smallest
from headrace.planner.plan import Overrides, Plan
from headrace.planner.simulate import FewRows, job_seconds, predict
from headrace.planner.sweeps import Load, SweepTimes
from headrace.planner.tail import on_demand_rows
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.units import format_bytes
from headrace.specs.workload import Workload

_RANKING_STEPS = 20_000
_GAIN = 0.998  # what cannot be faster than this share of the best so far is not played
_FREE = Overrides()
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
    overrides, budget_bytes = at.overrides, at.budget_bytes
    _check(overrides, at)
    least = at.map_of(smallest(at)).total_bytes
    if budget_bytes < least:
        raise BudgetError(
            "the memory budget is too small for this model and job",
            smallest_bytes=least,
            expected=f"at least {least} bytes ({format_bytes(least)})",
            got=f"{budget_bytes} bytes ({format_bytes(budget_bytes)})",
            hint=f"--memory {least}",
        )
    policy = _best(at)
    threshold = 0
    if policy.schedule == "stream" and overrides.schedule is None:
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
        prediction=predict(
            at.model, at.pages, policy, at.hardware, at.workload, on_demand_rows, at.kinds
        ),
        on_demand_rows=on_demand_rows,
        smallest_bytes=at.map_of(smallest(at)).total_bytes,
        notes=_notes(at, policy, on_demand_rows),
    )


def _best(at: Situation) -> Policy:
    """The candidate with the shortest job; none is played whose bound is longer."""
    best: tuple[float, Policy] | None = None
    for least, policy in candidates(at):
        if best is not None and least >= best[0]:
            break  # and so are all that follow
        times = at.times_of(policy)
        if best is not None and _bound(at, times) >= _GAIN * best[0]:
            continue
        overlap = at.overlap_of(policy)(min(policy.max_rows, policy.max_seqs * 3 // 2 + 1))
        seconds = job_seconds(FewRows(times), at.workload, _RANKING_STEPS) * overlap
        if best is None or seconds < best[0]:
            best = (seconds, policy)
    assert best is not None, "the smallest policy fits: its budget was checked"
    return best[1]


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
