"""The best plan for any machine, with the baselines it was compared with."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from headrace.errors import HeadraceError, UsageError
from headrace.planner import rules
from headrace.planner.baselines import FAMILIES, published
from headrace.planner.candidates import Situation, least_seconds, smallest
from headrace.planner.device_fit import Choice, Fit, Fitter
from headrace.planner.device_notes import device_notes
from headrace.planner.device_pages import placed
from headrace.planner.device_search import OWN, DeviceSearch, Traits
from headrace.planner.nearest import device_refusal
from headrace.planner.plan import Baseline, Plan
from headrace.planner.published import Row
from headrace.planner.simulate import (
    Ledger,
    Prediction,
    predict_with,
    simulate,
    with_interval,
)
from headrace.specs.policy import DEVICE_SCHEDULES, SCHEDULES, Policy
from headrace.specs.units import format_bytes

HOST_BASELINES = ("resident", "one_by_one")
ALL_BASELINES = frozenset((*HOST_BASELINES, *FAMILIES))

_STEPS = 6000
"""Tokens of a play that ranks, or prices a baseline."""

_CAREFUL_STEPS = 40_000

_CLOSE = 1.3
"""Families whose closed form is this much slower than the best are not played to be ranked."""

_PLAYED = 4  # choices in all


_NEAR, _ROUNDS, _SHORT_ROUNDS, _WORTH = 4, 2, 3, 0.004
"""Choices played around the best, how often that may go on, also of a short job, and the gain that
it takes."""

_TRIED = 40  # of a short job


def best_plan(at: Situation, baselines: Collection[str] = ALL_BASELINES) -> Plan:
    """The plan for ``at``, ``baselines`` priced beside it, those that its machine knows; where one
    of them is faster, it is the plan.

    Raises BudgetError with the smallest budget that works when none does, and UsageError for an
    override that cannot be honoured.
    """
    with _collector_paused():
        if at.hardware.has_device:
            return _DeviceSearch(at).plan(baselines)
        plan = rules.best_plan(at)
        found = tuple(_on_host(at, plan, name) for name in HOST_BASELINES if name in baselines)
        return _winner(at, replace(plan, baselines=found))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A search makes some 100,000 small objects that live as long as it does, and no cycles: to
    look for cycles among them took a sixth of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _on_host(at: Situation, plan: Plan, name: str) -> Baseline:
    if plan.policy.schedule == name:
        return Baseline(name, plan.policy, plan.prediction)
    if name == "one_by_one":
        policy = replace(plan.policy, schedule=name)
        return Baseline(name, policy, rules.prediction(at, policy))
    asked = replace(at, overrides=replace(at.overrides, schedule=name))
    least = asked.map_of(smallest(asked)).total_bytes
    if least > at.budget_bytes:
        return Baseline(name, refusal=f"all weights and one request take {format_bytes(least)}")
    try:
        found = rules.best_plan(asked)
    except HeadraceError as refusal:
        return Baseline(name, refusal=str(refusal))
    return Baseline(name, found.policy, found.prediction)


def _winner(at: Situation, plan: Plan) -> Plan:
    """``plan``, or the fastest of its baselines where that is faster."""
    runs = [b for b in plan.baselines if b.policy is not None and b.prediction is not None]
    best = min(runs, key=_seconds, default=None)
    if best is None or _seconds(best) >= plan.prediction.seconds or at.overrides.schedule:
        return plan
    assert best.policy is not None
    prediction = best.prediction
    if best.policy.on_device:
        memory = Fitter(at).map_of(best.policy)
        notes = device_notes(at, best.policy)
    else:
        memory, notes = at.map_of(best.policy), plan.notes
    assert prediction is not None
    return replace(
        plan,
        policy=best.policy,
        memory=memory,
        prediction=prediction,
        on_demand_rows=0,
        notes=notes,
        chosen=best.name,
    )


def _seconds(baseline: Baseline) -> float:
    return baseline.prediction.seconds if baseline.prediction else float("inf")


_PlayedFit = tuple[float, Fit, Policy]


def _job(found: _PlayedFit) -> float:
    return found[0]


class _DeviceSearch:
    """The search of one situation beside an accelerator."""

    def __init__(self, at: Situation) -> None:
        self.at = at
        self.search = DeviceSearch(Fitter(at))
        self._ranked: dict[Traits, list[Fit]] = {}
        self._best = float("inf")
        self._alone: Policy | None = None  # the processor's, where it is faster

    def plan(self, baselines: Collection[str]) -> Plan:
        asked = self.at.overrides.schedule
        if asked is not None and asked not in (*SCHEDULES, *DEVICE_SCHEDULES):
            names = dict.fromkeys((*SCHEDULES, *DEVICE_SCHEDULES))
            raise UsageError("schedule", expected=" | ".join(names), got=asked)
        own = self._own()
        if own is None:
            if asked in DEVICE_SCHEDULES and asked not in SCHEDULES:
                raise device_refusal(self.at, asked)
            alone = self._alone
            plan = rules.decided(self.at, alone) if alone else rules.best_plan(self.at)
        else:
            plan = self._plan_of(*own)
        self._best = plan.prediction.seconds
        found = tuple(self._baseline(name, plan) for name in FAMILIES if name in baselines)
        return self._careful(_winner(self.at, replace(plan, baselines=found)))

    @property
    def _alone_at(self) -> Situation:
        """The situation for the processor alone, which does not know a device's schedules."""
        fixed = self.at.overrides
        known = fixed.schedule is None or fixed.schedule in SCHEDULES
        return self.at if known else replace(self.at, overrides=replace(fixed, schedule=None))

    # -- the planner's own -------------------------------------------------------------------

    def _own(self) -> tuple[float, Policy] | None:
        """Seconds and policy of the fastest plan on the device; None where none fits, or the
        processor alone is faster."""
        asked = self.at.overrides.schedule
        if asked is not None and asked not in DEVICE_SCHEDULES:
            return None
        families = OWN if asked is None else _traits(asked)
        best = self._fastest(families)
        if best is None or asked is not None or least_seconds(self.at) >= best[0]:
            return best
        if self.at.map_of(smallest(self.at)).total_bytes > self.at.budget_bytes:
            return best
        self._alone = rules.fastest(self.at, below=best[0])
        return best if self._alone is None else None

    def _fastest(self, families: tuple[Traits, ...]) -> tuple[float, Policy] | None:
        ranked = [fits for fits in map(self._fits, families) if fits]
        if not ranked:
            return None
        least = min(fits[0].seconds for fits in ranked)
        close = [
            fit for fits in ranked for fit in _different(fits) if fit.seconds <= _CLOSE * least
        ]
        close = sorted(close, key=lambda fit: fit.seconds)[: self.at.plays(_PLAYED)]
        if self.at.is_small:
            some = sorted((fit for fits in ranked for fit in fits), key=lambda fit: fit.seconds)
            close = [*close, *self._few(some)]
        close = list(dict.fromkeys([*self.search.known(), *close]))
        played = list(self.search.played(close, _STEPS))
        if not played:  # rounding to pages spoiled the best: others may do
            rest = (fit for fits in ranked for fit in fits[1:4])
            played = _first(self.search.played(rest, _STEPS))
        if not played:
            return None
        seconds, _, policy = self._refined(min(played, key=_job))
        return seconds, policy

    def _refined(self, best: _PlayedFit) -> _PlayedFit:
        """The best of what is near, as long as that is better."""
        for _ in range(_SHORT_ROUNDS if self.at.is_small else self.at.plays(_ROUNDS)):
            near = self._few(self.search.around(best[1]))
            found = min(self.search.played(near, _STEPS), key=_job, default=best)
            if found[0] >= (1 - _WORTH) * best[0]:
                return min(found, best, key=_job)
            best = found
        return best

    def _few(self, fits: list[Fit]) -> list[Fit]:
        """Those worth a play. Of a short job the course is no guide: it is played sweep by sweep,
        each at its closed form, to tell."""
        if not self.at.is_small:
            return fits[: self.at.plays(_NEAR)]
        tried = self.search.played(fits[:_TRIED], _STEPS, closed=True)
        return [fit for _, fit, _ in sorted(tried, key=_job)][:_NEAR]

    def _fits(self, traits: Traits) -> list[Fit]:
        if traits not in self._ranked:
            self._ranked[traits] = self.search.ranked(traits)
        return self._ranked[traits]

    def _plan_of(self, seconds: float, policy: Policy) -> Plan:
        return Plan(
            policy=policy,
            memory=self.search.fitter.map_of(policy),
            prediction=self._quick(policy, seconds),
            on_demand_rows=0,
            smallest_bytes=self._alone_at.map_of(smallest(self._alone_at)).total_bytes,
            notes=device_notes(self.at, policy),
        )

    # -- baselines ---------------------------------------------------------------------------

    def _baseline(self, name: str, plan: Plan) -> Baseline:
        for fit in self._best_of(name):
            policy = placed(self.search.fitter, fit)
            if policy is not None:
                far = fit.seconds > _CLOSE * self._best and not self.at.is_small
                found = self._rough(policy, fit) if far else self._quick(policy, fit.seconds)
                return Baseline(name, policy, found)
        return Baseline(name, refusal=self.search.fitter.refusal)

    def _best_of(self, name: str) -> Iterator[Fit]:
        """What a baseline may be, the first that can be placed: what its makers published, or the
        best few of its family."""
        known = published(self.at) if name == "moe_lightning" else None
        if known is not None:
            yield from self._published(known)
        yield from self._fits(FAMILIES[name])[:4]

    def _published(self, known: Row) -> list[Fit]:
        """Its requests at once, micro-batches and experts on the device; none if it cannot fit."""
        fitter, parts = self.search.fitter, known.parts or 1
        rows = (known.mu or 0) * parts
        seqs = min(rows, self.at.workload.requests)
        fit = fitter.fit(Choice("cgopipe", seqs, rows, parts, held=False))
        if fit is None or not known.on_device:
            return [fit] if fit else []
        return [fitter.holding(fit, known.on_device)]

    # -- predictions -------------------------------------------------------------------------

    def _quick(self, policy: Policy, seconds: float) -> Prediction:
        """A play of a part of the job: of a job of about ``seconds`` that is far from the best,
        or waits for a disk, by the closed form; else corrected by plays of few sweeps."""
        close = seconds <= _CLOSE * self._best and not policy.on_disk
        times = self.search.times(policy, played=close)
        decisions = self.at.known.decisions
        found = simulate(times, self.at.workload, _STEPS, decisions)
        return with_interval(found, self.at.hardware)

    def _rough(self, policy: Policy, fit: Fit) -> Prediction:
        """The job's course at the closed form, of a policy that is far from the best."""
        ledger = Ledger(self.search.times(policy, played=False))
        for count, load in fit.course.parts:
            ledger.add_many(load, count)
        return with_interval(ledger.prediction(self.at.workload, []), self.at.hardware)

    def _careful(self, plan: Plan) -> Plan:
        """``plan`` with a prediction made with care, unless that makes a baseline the faster one:
        then those that look faster are predicted in the same way."""
        if not plan.policy.on_device:
            return plan
        plan = replace(plan, prediction=self._predict(plan.policy))
        looks = [b for b in plan.baselines if _seconds(b) < plan.prediction.seconds]
        again = {b.name: replace(b, prediction=self._predict(b.policy)) for b in looks if b.policy}
        found = tuple(again.get(b.name, b) for b in plan.baselines)
        return _winner(self.at, replace(plan, baselines=found))

    def _predict(self, policy: Policy) -> Prediction:
        times = self.search.times(policy)
        decisions = self.at.known.decisions
        return predict_with(times, self.at.workload, self.at.hardware, _CAREFUL_STEPS, decisions)


def _different(fits: list[Fit]) -> list[Fit]:
    """The best few, each with another number of micro-batches: the closed form hardly sees it."""
    best: dict[int, Fit] = {}
    for fit in fits:
        best.setdefault(fit.choice.parts, fit)
    return list(best.values())[:2]


def _traits(schedule: str) -> tuple[Traits, ...]:
    """Families of a schedule that was asked for."""
    own = tuple(traits for traits in OWN if traits.schedule == schedule)
    return own or (replace(FAMILIES[schedule], coarse=False),)


def _first(found: Iterator[_PlayedFit]) -> list[_PlayedFit]:
    return [each for each, _ in zip(found, range(1), strict=False)]
