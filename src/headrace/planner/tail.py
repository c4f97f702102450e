"""Where reading only the routed experts beats streaming all of them."""

from __future__ import annotations

from dataclasses import replace

from headrace.planner.played import SteadyPlay, first_layers
from headrace.planner.sweeps import Load
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy


def on_demand_rows(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    kv: int = 256,
) -> int:
    """The most rows of a sweep for which ``on_demand`` is faster than ``stream``; 0 if it never
    is. Both are played on the virtual machine with decodes over ``kv`` tokens each, at doubling
    row counts, then bisected: a few plays, done once per run.
    """
    streamed = [p for p in pages if p.expert is not None and p.id not in policy.resident]
    if not streamed or not model.is_moe or model.top_k == model.experts:
        return 0

    shorter = first_layers(min(model.layers, 4), model, pages, policy)  # the others are alike
    plays = [
        SteadyPlay(*shorter[:2], replace(shorter[2], schedule=name), hardware)
        for name in ("on_demand", "stream")
    ]

    def faster(rows: int) -> bool:
        demand, stream = (play.seconds(Load(rows, rows * kv, samples=rows)) for play in plays)
        return demand < 0.98 * stream  # a tie goes to the one that does not guess

    low, high = 0, 1
    while high <= policy.max_rows and faster(high):
        low, high = high, high * 2
    high = min(high, policy.max_rows + 1)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if faster(middle) else (low, middle)
    return low
