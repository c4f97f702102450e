"""From shares to pages: which stay on the device, which are the processor's, which lie on disk.

Everything is spread evenly over the layers, so that reads, transfers and arithmetic alternate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from headrace.planner.device_fit import Fit, Fitter
from headrace.planner.residency import evenly
from headrace.schedule.tally import Kinds
from headrace.specs.policy import Policy


def placed(fitter: Fitter, fit: Fit) -> Policy | None:
    """The policy of ``fit`` with its pages; None if rounding to pages makes it too large. As much
    as fits stays on the device."""
    chosen = _Chosen(fitter, fit)
    total = len(chosen.pages)
    held = math.floor(fit.split.resident * total + 1e-9)
    policy = chosen.policy(held)
    for _ in range(_TRIES):
        use = fitter.map_of(policy)
        if use.fits or not held or fit.choice.schedule == "resident":
            break
        over = max(use.tiers[tier].planned_bytes - use.tiers[tier].capacity_bytes
                   for tier in ("device",))  # fmt: skip
        if over <= 0:  # the host's: what does not fit there is read from disk
            chosen.more_on_disk(use.tiers["host"].planned_bytes - use.tiers["host"].capacity_bytes)
        else:
            held -= max(1, math.ceil(over / policy.slot_bytes))
        policy = chosen.policy(max(0, held))
    return policy if fitter.map_of(policy).fits else None


_TRIES = 40


class _Chosen:
    def __init__(self, fitter: Fitter, fit: Fit) -> None:
        self._fitter, self._fit = fitter, fit
        kinds = fitter.at.kinds
        divisible = fitter.experts_ids
        self._layer_of = {p.id: p.layer or 0 for p in kinds.pages if p.id in divisible}
        experts: dict[tuple[int, int], list[int]] = {}
        for page in kinds.pages:
            if page.id in divisible:
                experts.setdefault((page.layer or 0, page.expert or 0), []).append(page.id)
        beside = round(fit.split.cpu * len(experts))
        self.beside = frozenset(
            page for expert in evenly(list(experts), beside) for page in experts[expert]
        )
        self.pages = [i for i in self._layer_of if i not in self.beside]
        self._extra = 0

    def more_on_disk(self, count: int) -> None:
        """Read ``count`` more bytes from disk."""
        self._extra += max(1, math.ceil(count / self._fit.policy.slot_bytes))

    def policy(self, held: int) -> Policy:
        """With ``held`` pages of experts on the device."""
        fit, fitter = self._fit, self._fitter
        held = min(held, len(self.pages))
        resident = frozenset(evenly(self.pages, held))
        streamed = [page for page in self.pages if page not in resident]
        share = fit.split.disk * len(self._layer_of)
        read = min(len(streamed), math.ceil(share - 1e-9) + self._extra) if share else self._extra
        on_disk = frozenset(evenly(streamed, min(read, len(streamed))))
        ring = self._ring(streamed)
        return replace(
            fit.policy,
            resident=resident | fitter.others_ids,
            cpu_experts=self.beside,
            on_disk=on_disk,
            ring_slots=ring,
            slot_bytes=fit.policy.slot_bytes if ring else 0,
            stage_slots=fitter.stage_slots if on_disk else 0,
        )

    def _ring(self, streamed: Iterable[int]) -> int:
        """Slots for the streamed pages of any two layers one after the other."""
        counts = [0] * (self._fitter.at.model.layers + 1)
        for page in streamed:
            counts[self._layer_of[page]] += 1
        return max(a + b for a, b in pairwise(counts))


def streamed_bytes(kinds: Kinds, policy: Policy) -> int:
    """Bytes that cross the link in every sweep."""
    return sum(kind.page.bytes * len(ids) for kind, ids in kinds.streamed(policy))
