"""The best plan for any machine, with the baselines it was compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from headrace.errors import BudgetError, HeadraceError, UsageError
from headrace.planner import rules
from headrace.planner.baselines import FAMILIES, Published, published
from headrace.planner.candidates import Situation, least_seconds, smallest
from headrace.planner.device_fit import Choice, Fit, Fitter
from headrace.planner.device_notes import device_notes
from headrace.planner.device_pages import placed
from headrace.planner.device_search import OWN, DeviceSearch, Traits, own_traits
from headrace.planner.nearest import device_refusal
from headrace.planner.plan import Baseline, Plan
from headrace.planner.prices import DevicePrices, Sketches, price
from headrace.planner.simulate import FewRows, Prediction, predict, simulate, with_interval
from headrace.planner.tabulated import Tabulated
from headrace.specs.policy import DEVICE_SCHEDULES, SCHEDULES, Policy
from headrace.specs.units import format_bytes

HOST_BASELINES = ("resident", "one_by_one")

_STEPS = 6000
"""Tokens of a play that ranks, or prices a baseline."""

_CLOSE = 1.3
"""Families whose closed form is this much slower than the best are not played to be ranked."""

_PLAYED = 2  # of each family


def best_plan(at: Situation) -> Plan:
    """The plan for ``at``, baselines priced beside it; where one of them is faster, it is the plan.

    Raises BudgetError with the smallest budget that works when none does, and UsageError for an
    override that cannot be honoured.
    """
    if at.hardware.has_device:
        return _DeviceSearch(at).plan()
    plan = rules.best_plan(at)
    found = tuple(_on_host(at, plan, name) for name in HOST_BASELINES)
    return _winner(at, replace(plan, baselines=found))


def _on_host(at: Situation, plan: Plan, name: str) -> Baseline:
    if plan.policy.schedule == name:
        return Baseline(name, plan.policy, plan.prediction)
    if name == "one_by_one":
        policy = replace(plan.policy, schedule=name)
        return Baseline(name, policy, _prediction(at, policy))
    asked = replace(at, overrides=replace(at.overrides, schedule=name))
    least = asked.map_of(smallest(asked)).total_bytes
    if least > at.budget_bytes:
        return Baseline(name, refusal=f"all weights and one request take {format_bytes(least)}")
    try:
        found = rules.best_plan(asked)
    except HeadraceError as refusal:
        return Baseline(name, refusal=str(refusal))
    return Baseline(name, found.policy, found.prediction)


def _prediction(at: Situation, policy: Policy, sketches: Sketches | None = None) -> Prediction:
    return predict(
        at.model, at.pages, policy, at.hardware, at.workload, kinds=at.kinds, sketches=sketches
    )


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


class _DeviceSearch:
    """The search of one situation beside an accelerator."""

    def __init__(self, at: Situation) -> None:
        self.at = at
        self.sketches = Sketches()
        self.search = DeviceSearch(Fitter(at), self.sketches)
        self._ranked: dict[Traits, list[Fit]] = {}

    def plan(self) -> Plan:
        asked = self.at.overrides.schedule
        if asked is not None and asked not in (*SCHEDULES, *DEVICE_SCHEDULES):
            names = dict.fromkeys((*SCHEDULES, *DEVICE_SCHEDULES))
            raise UsageError("schedule", expected=" | ".join(names), got=asked)
        own = self._own()
        if own is None:
            if asked in DEVICE_SCHEDULES and asked not in SCHEDULES:
                raise device_refusal(self.at, asked)
            plan = rules.best_plan(self.at)
        else:
            plan = self._plan_of(*own)
        found = tuple(self._baseline(name, plan) for name in FAMILIES)
        return self._final(_winner(self.at, replace(plan, baselines=found)))

    # -- the planner's own -------------------------------------------------------------------

    def _own(self) -> tuple[float, Policy] | None:
        """Seconds and policy of the fastest plan on the device; None where none fits, or the
        processor alone is faster."""
        asked = self.at.overrides.schedule
        if asked is not None and asked not in DEVICE_SCHEDULES:
            return None
        families = [own_traits(name) for name in OWN] if asked is None else [_traits(asked)]
        best = self._fastest(families)
        if best is None or asked is not None or least_seconds(self.at) >= best[0]:
            return best
        try:
            alone = rules.best_plan(self.at)
        except BudgetError:
            return best
        return best if best[0] <= alone.prediction.seconds else None

    def _fastest(self, families: list[Traits]) -> tuple[float, Policy] | None:
        ranked = [fits for fits in map(self._fits, families) if fits]
        if not ranked:
            return None
        least = min(fits[0].seconds for fits in ranked)
        close = [fit for fits in ranked for fit in fits[:_PLAYED] if fit.seconds <= _CLOSE * least]
        played = self.search.played(close, _STEPS)
        found = [(seconds, policy) for seconds, _, policy in played]
        if not found:  # rounding to pages spoiled the best: others may do
            rest = (fit for fits in ranked for fit in fits[_PLAYED:])
            found = [(s, p) for s, _, p in _first(self.search.played(rest, _STEPS))]
        return min(found, key=lambda pair: pair[0], default=None)

    def _fits(self, traits: Traits) -> list[Fit]:
        if traits not in self._ranked:
            self._ranked[traits] = self.search.ranked(traits)
        return self._ranked[traits]

    def _plan_of(self, seconds: float, policy: Policy) -> Plan:
        return Plan(
            policy=policy,
            memory=self.search.fitter.map_of(policy),
            prediction=self._quick(policy),
            on_demand_rows=0,
            smallest_bytes=self.at.map_of(smallest(self.at)).total_bytes,
            notes=device_notes(self.at, policy),
        )

    # -- baselines ---------------------------------------------------------------------------

    def _baseline(self, name: str, plan: Plan) -> Baseline:
        known = published(self.at) if name == "moe_lightning" else None
        fits = self._fits(FAMILIES[name]) if known is None else self._published(known)
        for fit in fits[:4]:
            policy = placed(self.search.fitter, fit)
            if policy is not None:
                return Baseline(name, policy, self._quick(policy))
        return Baseline(name, refusal=str(device_refusal(self.at, FAMILIES[name].schedule)))

    def _published(self, known: Published) -> list[Fit]:
        seqs = min(known.micro_batch * known.parts, self.at.workload.requests)
        chunk = self.at.overrides.chunk
        choice = Choice("cgopipe", seqs, seqs + chunk, min(known.parts, seqs), held=False)
        fit = self.search.fitter.fit(choice)
        return [fit] if fit else []

    # -- predictions -------------------------------------------------------------------------

    def _quick(self, policy: Policy) -> Prediction:
        """A play of a part of the job, corrected by plays of few sweeps."""
        at = self.at
        prices = price(at.model, at.pages, policy, at.hardware, self.sketches)
        assert isinstance(prices, DevicePrices)
        times = FewRows(Tabulated(prices, self.search.loads(policy)))
        return with_interval(simulate(times, at.workload, _STEPS), at.hardware)

    def _final(self, plan: Plan) -> Plan:
        """The chosen policy's prediction, made with care."""
        if not plan.policy.on_device:
            return plan
        return replace(plan, prediction=_prediction(self.at, plan.policy, self.sketches))


def _traits(schedule: str) -> Traits:
    return own_traits(schedule) if schedule in OWN else FAMILIES[schedule]


def _first(found: Iterator[tuple[float, Fit, Policy]]) -> list[tuple[float, Fit, Policy]]:
    return [each for each, _ in zip(found, range(1), strict=False)]
