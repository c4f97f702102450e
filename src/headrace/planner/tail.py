"""Where reading only the routed experts beats streaming all of them."""

from __future__ import annotations

from dataclasses import replace

from headrace.planner.host_sketch import HostSketch
from headrace.planner.sweeps import Load, SweepTimes
from headrace.schedule.tally import Kinds
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy

_CLEARLY = 0.98


def on_demand_rows(
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    kv: int = 256,
    kinds: Kinds | None = None,
) -> int:
    """The most rows of a sweep for which ``on_demand`` is faster than ``stream``; 0 if it never
    is. Both are played on the virtual machine with decodes over ``kv`` tokens each, at doubling
    row counts, then bisected: a few plays, done once per run.
    """
    streamed = [p for p in pages if p.expert is not None and p.id not in policy.resident]
    if not streamed or not model.is_moe or model.top_k == model.experts:
        return 0

    kinds = kinds or Kinds(model, pages)
    demand, stream = (
        _Played(kinds, replace(policy, schedule=name), hardware, kv)
        for name in ("on_demand", "stream")
    )

    def faster(rows: int) -> bool:  # a tie goes to the one that does not guess
        if demand.read_seconds(rows) >= _CLEARLY * stream.read_seconds(rows):
            return False
        return demand.seconds(rows) < _CLEARLY * stream.seconds(rows)

    low, high = 0, 1
    while high <= policy.max_rows and faster(high):
        low, high = high, high * 2
    high = min(high, policy.max_rows + 1)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if faster(middle) else (low, middle)
    return low


class _Played:
    """Steady sweeps of decodes over ``kv`` tokens each under one policy."""

    def __init__(self, kinds: Kinds, policy: Policy, hardware: Hardware, kv: int) -> None:
        self._kv = kv
        self._sketch = HostSketch(kinds, policy, hardware)
        self._times = SweepTimes(kinds.model, kinds.pages, policy, hardware, kinds=kinds)
        apart = replace(hardware, contention=0.0)  # as what is played
        self._apart = SweepTimes(kinds.model, kinds.pages, policy, apart, kinds=kinds)

    def seconds(self, rows: int) -> float:
        """What is played, and as much longer as the lanes are beside each other."""
        load = self._load(rows)
        apart = self._apart.lanes(load).busiest
        longer = self._times.lanes(load).busiest / apart if apart else 1.0
        return longer * self._sketch.play(load)

    def read_seconds(self, rows: int) -> float:
        """Of the disk: no fewer, and nothing is gained by deciding late what to read."""
        return self._times.lanes(self._load(rows)).disk

    def _load(self, rows: int) -> Load:
        return Load(rows, rows * self._kv, samples=rows)
