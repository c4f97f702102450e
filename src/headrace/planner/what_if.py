"""What would make the job faster: the same job planned anew on machines and models that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import HeadraceError
from headrace.planner.candidates import Situation
from headrace.planner.plan import Plan
from headrace.planner.search import best_plan
from headrace.specs.forms import FLOATS, MATRICES, Form
from headrace.specs.hardware import D2H, DISK, GPU_FLOPS, H2D, HBM, Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.registry import all_known_hardware
from headrace.specs.units import format_seconds

LEAST_GAIN = 0.03
"""A change that saves less of the job's time is not worth making."""

CLOSE = 1.15
"""Baselines of so many times the plan's seconds may be the fastest after a change."""

MOST_DEVICES = 3
GROUPS = (128, 64, 32)

INTEGERS = {"int8": "i8", "int4": "u4"}
"""Weights that ``headrace quantize`` makes, and their format (a key of ``forms.INTEGERS``)."""


@dataclass(frozen=True)
class Change:
    """One thing changed. ``buy`` tells hardware from what a command can do."""

    name: str
    at: Situation
    buy: bool


@dataclass(frozen=True)
class Priced:
    """A change and the job's time with it; ``gain`` is the share of the time that it saves, below
    0 where the job would take longer. ``refusal`` says why it cannot be planned."""

    name: str
    buy: bool
    seconds: float | None = None
    gain: float | None = None
    bound_by: str | None = None
    refusal: str = ""

    @property
    def worth(self) -> bool:
        """Whether it saves LEAST_GAIN or more."""
        return self.gain is not None and self.gain >= LEAST_GAIN

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "change": self.name,
            "buy": self.buy,
            "job_seconds": self.seconds,
            "gain": self.gain,
            "bound_by": self.bound_by,
            "refusal": self.refusal or None,
        }


def price_changes(at: Situation, plan: Plan) -> list[Priced]:
    """Every change that applies, with its gain over ``plan``; the largest gain first. Each is
    planned as ``at`` was, by the same search around the plan, beside baselines that came close."""
    took, close = plan.prediction.seconds, close_baselines(plan)
    near = replace(at, near=plan.policy)
    priced = [_price(change, took, close) for change in changes(near)]
    return sorted(priced, key=lambda each: -(each.gain if each.gain is not None else -1e9))


def close_baselines(plan: Plan) -> list[str]:
    """Baselines of ``plan`` that may be the fastest after a change."""
    most = CLOSE * plan.prediction.seconds
    return [b.name for b in plan.baselines if b.prediction and b.prediction.seconds < most]


def advice(priced: Sequence[Priced]) -> str:
    """One or two sentences: what helps most, and what not to buy."""
    worth = [each for each in priced if each.worth]
    idle = [each.name for each in priced if each.buy and each.gain is not None and not each.worth]
    best = max(worth, key=lambda each: each.gain or 0.0, default=None)
    said = []
    if best is not None and best.seconds is not None:
        said.append(
            f"Most gained by {best.name}: {format_seconds(best.seconds)}, {best.gain:.0%} less."
        )
    if idle:
        said.append(f"Do not buy (less than {LEAST_GAIN:.0%} gained): {'; '.join(idle)}.")
    return " ".join(said) or f"No single change gains {LEAST_GAIN:.0%}."


def changes(at: Situation) -> Iterator[Change]:
    """Memory, disk and link twice as good, other accelerators, smaller weights and KV."""
    yield Change("twice the host memory", _more_memory(at), buy=True)
    yield Change("a disk twice as fast", _with_roofs(at, {DISK: 2.0}), buy=True)
    if at.hardware.has_device:
        link = {H2D: 2.0, D2H: 2.0}
        yield Change(
            "the next PCIe generation (link twice as fast)", _with_roofs(at, link), buy=True
        )
    for name, hardware in _accelerators(at.hardware):
        yield Change(
            f"accelerator {name.upper()}",
            replace(at, hardware=hardware, device_bytes=None),
            buy=True,
        )
    for weights in INTEGERS:
        smaller = in_integers(at, weights)
        if smaller is not None:
            yield Change(f"{weights} weights (headrace quantize)", smaller, buy=False)
    if at.overrides.kv_dtype != "int8" and at.model.mla is None:
        yield Change("int8 KV cache (--kv-cache-dtype int8)", with_kv(at, "int8"), buy=False)


def in_integers(at: Situation, weights: str) -> Situation | None:
    """``at`` with weights as ``headrace quantize`` makes them, ``weights`` of INTEGERS; None where
    it cannot."""
    model = quantised(at.model, INTEGERS[weights])
    if model is None:
        return None
    return replace(at, model=model, pages=page_layout(model), page_bytes=None)


def with_kv(at: Situation, kv_dtype: str) -> Situation:
    """``at`` with another KV cache."""
    return replace(at, overrides=replace(at.overrides, kv_dtype=kv_dtype))


def quantised(model: ModelSpec, dtype: str) -> ModelSpec | None:
    """``model`` with the matrices of its layers as integers, as ``headrace quantize`` makes them:
    a scale for each row of int8, for the largest fitting group of int4. None where they are
    integers already, or stored in another small format."""
    small = model.integers is not None or model.expert_dtype is not None
    if small or model.weight_dtype not in FLOATS:
        return None
    group = None
    if dtype == "u4":
        shapes = {**model.layer_tensors(), **model.expert_tensors()}
        columns = [shape[1] for name, shape in shapes.items() if name in MATRICES]
        group = next((g for g in GROUPS if not any(c % g for c in columns)), None)
        if group is None:
            return None
    return replace(model, integers=Form(dtype, group, model.weight_dtype))


def _price(change: Change, seconds: float, baselines: Sequence[str]) -> Priced:
    try:
        plan = best_plan(change.at, baselines)
    except HeadraceError as refusal:
        return Priced(change.name, change.buy, refusal=refusal.message)
    took = plan.prediction.seconds
    gain = 1 - took / seconds if seconds else 0.0
    return Priced(change.name, change.buy, took, gain, plan.bound_by)


def _more_memory(at: Situation) -> Situation:
    capacity = dict(at.hardware.capacity)
    for tier in ("host", "pinned"):
        if tier in capacity:
            capacity[tier] *= 2
    hardware = replace(at.hardware, capacity=capacity)
    return replace(at, hardware=hardware, budget_bytes=2 * at.budget_bytes)


def _with_roofs(at: Situation, factors: Mapping[str, float]) -> Situation:
    old = at.hardware
    roofs = {roof: rate * factors.get(roof, 1.0) for roof, rate in old.roofs.items()}
    lane_rate = old.lane_rate * factors.get(DISK, 1.0)
    return replace(at, hardware=replace(old, roofs=roofs, lane_rate=lane_rate))


def _accelerators(hardware: Hardware) -> list[tuple[str, Hardware]]:
    """Up to MOST_DEVICES cards of the registry with more memory, or more bandwidth, than what
    there is, smallest first, each put into this host."""
    memory = hardware.capacity.get("device", 0)
    known = [(name, k.hardware) for name, k in all_known_hardware().items()]
    cards = [
        (name, card)
        for name, card in known
        if card.has_device
        and card.devices == 1
        and not name.endswith("-paper")
        and name != hardware.name
        and (card.capacity["device"], card.roofs[HBM]) > (memory, hardware.roofs.get(HBM, 0.0))
    ]
    return [
        (name, _with_card(hardware, card)) for name, card in sorted(cards, key=_size)[:MOST_DEVICES]
    ]


def _size(named: tuple[str, Hardware]) -> tuple[float, float]:
    return named[1].capacity["device"], named[1].roofs[HBM]


def _with_card(host: Hardware, card: Hardware) -> Hardware:
    roofs = {**host.roofs, **{roof: card.roofs[roof] for roof in (GPU_FLOPS, HBM, H2D, D2H)}}
    capacity = {**host.capacity, "device": card.capacity["device"]}
    device = {op: curve for op, curve in card.efficiency.items() if op.startswith("gpu.")}
    own = {op: curve for op, curve in host.efficiency.items() if not op.startswith("gpu.")}
    name = f"{host.name} with {card.name}"
    return replace(
        host, name=name, roofs=roofs, capacity=capacity, efficiency={**own, **device}, devices=1
    )
