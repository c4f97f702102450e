"""From shares to pages: which stay on the device, which are the processor's, which lie on disk.

Everything is spread evenly over the layers, so that reads, transfers and arithmetic alternate.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from headrace.planner.device_fit import Fit, Fitter
from headrace.planner.memory_map import MemoryMap, arena_bytes
from headrace.planner.residency import evenly
from headrace.specs.policy import Policy


def placed(fitter: Fitter, fit: Fit) -> Policy | None:
    """The policy of ``fit`` with its pages, as many on the device as fit; None if rounding to
    pages makes it too large."""
    chosen = _Chosen(fitter, fit)
    held = math.floor(fit.split.resident * chosen.total + 1e-9)
    if fit.choice.schedule == "resident" or not fit.choice.held:
        policy = chosen.policy(held)
        return policy if fitter.map_of(policy).fits else None
    held = chosen.most_held()
    for _ in range(_TRIES):
        policy = chosen.policy(held)
        use = fitter.map_of(policy)
        if use.fits:
            return policy
        over = _excess(use, "device")
        if over > 0 and not held:
            return None
        page = fit.policy.slot_bytes  # of ``policy`` it is 0 where all pages are held
        held -= min(held, math.ceil(over / page)) if over > 0 else 0
        chosen.more_on_disk(_excess(use, "host"))
    return None


_TRIES = 6


def _excess(use: MemoryMap, tier: str) -> int:
    return use.tiers[tier].planned_bytes - use.tiers[tier].capacity_bytes


class _Chosen:
    def __init__(self, fitter: Fitter, fit: Fit) -> None:
        self._fitter, self._fit = fitter, fit
        experts, layer_of = fitter.experts, fitter.layer_of
        beside = math.floor(fit.split.cpu * len(experts) + 1e-9)
        self.beside = frozenset(
            page for expert in evenly(list(experts), beside) for page in experts[expert]
        )
        self.total = len(layer_of)
        self.pages = [page for page in layer_of if page not in self.beside]
        self._layers = _starts([layer_of[page] for page in self.pages], fitter.at.model.layers)
        self._extra = 0

    def more_on_disk(self, count: int) -> None:
        """Read ``count`` more bytes from disk, if there are any."""
        self._extra += max(0, math.ceil(count / self._fit.policy.slot_bytes))

    def most_held(self) -> int:
        """About as many pages as the device has room for beside the ring of the others."""
        fitter = self._fitter
        room, _ = fitter.rooms(self._fit.policy)
        page, slot = fitter.weights / self.total, arena_bytes(self._fit.policy.slot_bytes)

        def spare(held: int) -> float:
            return room - held * page - self._ring(held) * slot

        counts = range(1, len(self.pages) + 1)
        return bisect.bisect_right(counts, 0.0, key=lambda held: -spare(held))

    def policy(self, held: int) -> Policy:
        """With ``held`` pages of experts on the device."""
        fit, fitter = self._fit, self._fitter
        held = min(held, len(self.pages))
        resident = frozenset(evenly(self.pages, held))
        streamed = [page for page in self.pages if page not in resident]
        share = fit.split.disk * self.total
        read = min(len(streamed), math.ceil(share - 1e-9) + self._extra) if share else self._extra
        on_disk = frozenset(evenly(streamed, min(read, len(streamed))))
        ring = self._ring(held)
        return replace(
            fit.policy,
            resident=resident | fitter.others_ids,
            cpu_experts=self.beside,
            on_disk=on_disk,
            ring_slots=ring,
            slot_bytes=fit.policy.slot_bytes if ring else 0,
            stage_slots=fitter.stage_slots if on_disk else 0,
        )

    def _ring(self, held: int) -> int:
        """Slots for the streamed pages of any two layers one after the other, ``held`` of all
        pages spread ``evenly``: of the first n of them, n held // all."""
        total = max(1, len(self.pages))
        streamed = [
            end - start - (end * held // total - start * held // total)
            for start, end in pairwise(self._layers)
        ]
        return max(a + b for a, b in pairwise([*streamed, 0]))


def _starts(layers: Sequence[int], count: int) -> list[int]:
    """Where each of ``count`` layers begins in a list of ascending ``layers``; its end last."""
    return [bisect.bisect_left(layers, layer) for layer in range(count + 1)]
