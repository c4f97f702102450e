"""In which formats of weights and KV cache a job is fastest. Formats change answers: nothing is
tried here but what was allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import HeadraceError, UsageError
from headrace.planner.candidates import Situation
from headrace.planner.plan import Plan, activations_for
from headrace.planner.profile import weights_of
from headrace.planner.search import ALL_BASELINES, best_plan
from headrace.planner.what_if import (
    GROUPS,
    INTEGERS,
    LEAST_GAIN,
    close_baselines,
    in_integers,
    with_kv,
)
from headrace.specs.forms import FLOATS
from headrace.specs.model import ModelSpec

STORED = "stored"
KV_INT8 = "kv-int8"
CHANGES = (*INTEGERS, KV_INT8)
ANY = "any"

Meeting = Callable[[Situation], Situation]
"""The same situation, its machine as such a model meets it: rates may differ by format."""


@dataclass(frozen=True)
class Tried:
    """One combination: ``weights`` as STORED or as ``headrace quantize`` names them, and the format
    of the KV cache. ``at`` and ``plan`` are how the job is planned with it; ``refusal`` says why it
    cannot be, and then there is no plan."""

    weights: str
    kv_dtype: str
    at: Situation
    plan: Plan | None = None
    refusal: HeadraceError | None = None

    @property
    def seconds(self) -> float:
        """Of the job; infinite where it was refused."""
        return self.plan.prediction.seconds if self.plan else float("inf")


@dataclass(frozen=True)
class FormatSearch:
    """All that was tried, the formats in use first, then those that change answers more; and the
    one of them that was chosen."""

    tried: tuple[Tried, ...]
    chosen: Tried

    @property
    def changes_weights(self) -> bool:
        """Whether a checkpoint has to be made before the plan can be run."""
        return self.chosen.weights != STORED

    @property
    def changes_kv(self) -> bool:
        """Whether the KV cache is another than was asked for."""
        return self.chosen.kv_dtype != self.tried[0].kv_dtype

    def gain(self, each: Tried) -> float | None:
        """Share of the job's time in the formats in use that ``each`` saves, below 0 where it takes
        longer; None where either was refused."""
        before = self.tried[0]
        if before.plan is None or each.plan is None or not before.seconds:
            return None
        return 1 - each.seconds / before.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "weights": self.chosen.weights,
            "kv_cache_dtype": self.chosen.kv_dtype,
            "tried": [
                {
                    "weights": each.weights,
                    "kv_cache_dtype": each.kv_dtype,
                    "job_seconds": each.seconds if each.plan else None,
                    "gain": self.gain(each),
                    "bound_by": each.plan.bound_by if each.plan else None,
                    "refusal": None if each.refusal is None else each.refusal.message,
                }
                for each in self.tried
            ],
        }


def changes_in(text: str) -> tuple[str, ...]:
    """The changes that ``--formats`` allows: ``any``, or a comma list of CHANGES. Raises
    UsageError."""
    names = [name.strip().lower() for name in text.split(",")]
    if names == [ANY]:
        return CHANGES
    if set(names) <= set(CHANGES):
        return tuple(name for name in CHANGES if name in names)
    unknown = next(name for name in names if name not in CHANGES)
    raise UsageError(
        "--formats",
        expected=f"{ANY}, or a list of {', '.join(CHANGES)}",
        got=repr(unknown[:80]),
        hint="--formats int8,kv-int8; weights as stored are always tried",
    )


def plan_formats(at: Situation, allowed: Sequence[str], met: Meeting) -> FormatSearch:
    """Plan ``at`` with every combination of ``allowed`` (of CHANGES), and choose.

    Combinations are taken in order, those that change answers more later; one is chosen over those
    before it if it saves LEAST_GAIN of their time. So the choice is never slower than the formats
    in use, and takes at most 1 / (1 - LEAST_GAIN) times what the fastest does.

    ``at`` itself is searched from nothing, the others around the first plan that is known, as
    ``price_changes`` does it; then the chosen one once more from nothing, with all baselines.
    Raises what the formats in use were refused for, if all are refused.
    """
    tried: list[Tried] = []
    for each in _combinations(at, allowed, met):
        known = next((other.plan for other in tried if other.plan), None)
        tried.append(_planned(each, known))
    chosen = tried[0]
    for each in tried[1:]:
        if each.plan and each.seconds <= (1 - LEAST_GAIN) * chosen.seconds:
            chosen = each
    if chosen.refusal:
        raise chosen.refusal
    final = chosen if chosen.at.near is None else _again(chosen)
    return FormatSearch(tuple(final if each is chosen else each for each in tried), final)


def _combinations(at: Situation, allowed: Sequence[str], met: Meeting) -> Iterator[Tried]:
    for weights in (STORED, *(name for name in INTEGERS if name in allowed)):
        for kv_dtype in dict.fromkeys((at.overrides.kv_dtype, *(["int8"] * (KV_INT8 in allowed)))):
            try:
                case = met(_changed(at, weights, kv_dtype))
            except HeadraceError as refusal:
                yield Tried(weights, kv_dtype, at, refusal=refusal)
            else:
                yield Tried(weights, kv_dtype, case)


def _changed(at: Situation, weights: str, kv_dtype: str) -> Situation:
    """``at`` with other formats. Raises UsageError where the model cannot be had so."""
    if kv_dtype != at.overrides.kv_dtype:
        if at.model.mla is not None:
            raise UsageError("a KV cache in int8 is not for latent attention")
        at = with_kv(at, kv_dtype)
    if weights == STORED:
        return at
    other = in_integers(at, weights)
    if other is None:
        raise UsageError(f"no {weights} can be made of these weights: {_obstacle(at.model)}")
    activations_for(at.overrides.activations, other.model)
    return other


def _obstacle(model: ModelSpec) -> str:
    stored = model.expert_dtype or weights_of(model)
    if stored in FLOATS:
        return f"no group of {', '.join(map(str, GROUPS))} columns divides their rows"
    return f"they are stored as {stored}"


def _planned(each: Tried, known: Plan | None) -> Tried:
    """``each`` with its plan, found around one that is ``known``."""
    if each.refusal:
        return each
    at, baselines = each.at, ALL_BASELINES
    if known is not None:
        at, baselines = replace(at, near=known.policy), frozenset(close_baselines(known))
    try:
        return replace(each, at=at, plan=best_plan(at, baselines))
    except HeadraceError as refusal:
        return replace(each, refusal=refusal)


def _again(chosen: Tried) -> Tried:
    """The same searched from nothing; what was found before where that was faster."""
    at = replace(chosen.at, near=None)
    try:
        plan = best_plan(at)
    except HeadraceError:
        return chosen
    if chosen.plan and chosen.seconds < plan.prediction.seconds:
        plan = replace(chosen.plan, baselines=plan.baselines)
    return replace(chosen, at=at, plan=plan)
