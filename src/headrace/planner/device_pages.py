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
from headrace.specs.policy import Policy


def placed(fitter: Fitter, fit: Fit) -> Policy | None:
    """The policy of ``fit`` with its pages, as many on the device as fit; None if rounding to
    pages makes it too large."""
    chosen = _Chosen(fitter, fit)
    held = math.floor(fit.split.resident * chosen.total + 1e-9)
    policy = chosen.policy(held)
    if fit.choice.schedule == "resident" or not fit.choice.held:
        return policy if fitter.map_of(policy).fits else None
    best: Policy | None = None
    for _ in range(_TRIES):
        use = fitter.map_of(policy)
        spare = use.tiers["device"].capacity_bytes - use.tiers["device"].planned_bytes
        if use.fits:
            best = policy
        if use.fits and (spare < 2 * policy.slot_bytes or held >= len(chosen.pages)):
            break
        if best is not None and not use.fits:
            break
        more = math.floor(spare / max(1, fit.policy.slot_bytes))
        if not use.fits and spare >= 0:  # the host's memory: a little more from disk
            chosen.more_on_disk(use.tiers["host"].planned_bytes - use.tiers["host"].capacity_bytes)
            more = 0
        held = max(0, min(len(chosen.pages), held + more))
        policy = chosen.policy(held)
    return best


_TRIES = 6


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
        beside = math.floor(fit.split.cpu * len(experts) + 1e-9)
        self.beside = frozenset(
            page for expert in evenly(list(experts), beside) for page in experts[expert]
        )
        self.total = len(self._layer_of)
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
