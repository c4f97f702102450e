"""Which policy beside an accelerator: choices enumerated, fitted, ranked by closed forms; the best
few are played."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headrace.planner.device_fit import Choice, Fit, Fitter
from headrace.planner.device_pages import placed
from headrace.planner.job_estimate import course_of
from headrace.planner.prices import DevicePrices, Sketches, price
from headrace.planner.simulate import FewRows, job_seconds
from headrace.planner.sweeps import Load
from headrace.planner.tabulated import Tabulated
from headrace.schedule.lanes import CPU, D2H, GPU
from headrace.specs.policy import Policy

MOST_SEQS = 8192
MOST_ROWS = 16_384
RESIDENT_ROWS = 2048  # prompt rows beside decodes where nothing streams: enough for full speed
OWN = ("cgopipe", "two_group", "resident")
"""Schedules that the planner chooses from; the others are baselines."""

_PARTS = (2, 4, 8, 16, 32)
_WORSE = 1.6  # once this much slower than the best, fewer sequences are not looked at


@dataclass(frozen=True)
class Traits:
    """What a family of policies may choose: sequences at once at most, micro-batches, experts
    resident on the device or multiplied by the processor, KV on the device."""

    schedule: str
    parts: tuple[int, ...]
    most_seqs: int = MOST_SEQS
    held: bool = True
    beside: bool = False
    kv_on_device: float = 0.0


def own_traits(schedule: str) -> Traits:
    """What the planner's own policies of ``schedule`` may choose."""
    parts = {"two_group": (2,), "resident": (1,)}.get(schedule, _PARTS)
    return Traits(schedule, parts, beside=schedule != "resident")


class DeviceSearch:
    """Fits of one situation, best first. ``sketches`` are shared by all that is played."""

    def __init__(self, fitter: Fitter, sketches: Sketches | None = None) -> None:
        self.fitter = fitter
        self.sketches = Sketches() if sketches is None else sketches

    def ranked(self, traits: Traits) -> list[Fit]:
        """Fits of a family, the shortest job first by the closed form; none if nothing fits."""
        found: list[Fit] = []
        for seqs in self._counts(traits.most_seqs):
            at_count = self._of_count(traits, seqs)
            found += at_count
            if found and at_count:
                best = min(fit.seconds for fit in found)
                if min(fit.seconds for fit in at_count) > _WORSE * best:
                    break
        if found:
            found += self._near(traits, min(found, key=_seconds))
        return sorted(found, key=_seconds)

    def played(self, fits: Iterable[Fit], steps: int) -> Iterator[tuple[float, Fit, Policy]]:
        """The job of each of ``fits`` that still fits once its pages are placed, with what a play
        of its typical sweep is longer than the closed form."""
        at = self.fitter.at
        for fit in fits:
            policy = placed(self.fitter, fit)
            if policy is None:
                continue
            prices = price(at.model, at.pages, policy, at.hardware, self.sketches)
            assert isinstance(prices, DevicePrices)
            times = FewRows(Tabulated(prices, fit.course.loads))
            yield job_seconds(times, at.workload, steps), fit, policy

    def loads(self, policy: Policy) -> tuple[Load, ...]:
        """Loads of the job's sweeps under ``policy``."""
        return course_of(self.fitter.job, policy).loads

    # -- choices -----------------------------------------------------------------------------

    def _counts(self, most: int) -> list[int]:
        """Sequences at once: 1, 2, 3, 4, 6, 8 ... all of the job; most first."""
        fixed = self.fitter.at.overrides
        if fixed.max_seqs:
            return [fixed.max_seqs]
        top = max(1, min(most, self.fitter.at.workload.requests, fixed.max_rows or most))
        counts = {top} | {n for p in range(14) for n in (2**p, 3 * 2**p) if n <= top}
        return sorted(counts, reverse=True)

    def _of_count(self, traits: Traits, seqs: int) -> list[Fit]:
        parts = self._parts(traits, seqs)
        first = self._fit(traits, seqs, seqs + self._chunk, parts[len(parts) // 2], 1 << 30)
        if first is None:
            tried = [self._fit(traits, seqs, seqs + self._chunk, p, 1 << 30) for p in parts]
            return [fit for fit in tried if fit]
        balance = self._balance(first)
        found = [first]
        for part in parts:
            for rows in self._rows(seqs, balance):
                fit = self._fit(traits, seqs, rows, part, min(balance, rows))
                if fit:
                    found.append(fit)
        return found

    def _near(self, traits: Traits, best: Fit) -> list[Fit]:
        """Choices around the best."""
        choice, found = best.choice, []
        for seqs in {round(choice.seqs * f) for f in (0.8, 0.9, 1.12, 1.25)}:
            if 1 <= seqs <= min(self._counts(traits.most_seqs)[0], MOST_SEQS):
                rows = max(seqs + self._chunk, choice.rows + seqs - choice.seqs)
                found.append(self._fit(traits, seqs, rows, choice.parts, choice.compute_rows))
        for rows in {round(choice.rows * f) for f in (0.75, 1.33)}:
            if rows >= choice.seqs + self._chunk:
                limit = min(choice.compute_rows, rows)
                found.append(self._fit(traits, choice.seqs, rows, choice.parts, limit))
        if len(traits.parts) > 1 and not self.fitter.at.overrides.micro_batches:
            for parts in {round(choice.parts * f) for f in (0.75, 1.5)} - {1}:
                fit = self._fit(traits, choice.seqs, choice.rows, parts, choice.compute_rows)
                found.append(fit)
        return [fit for fit in found if fit]

    def _fit(self, traits: Traits, seqs: int, rows: int, parts: int, limit: int) -> Fit | None:
        rows = self.fitter.at.overrides.max_rows or min(rows, max(MOST_ROWS, seqs + self._chunk))
        if rows < seqs or parts > rows:
            return None
        return self.fitter.fit(
            Choice(
                traits.schedule,
                seqs,
                rows,
                parts,
                limit,
                traits.kv_on_device,
                traits.held,
                traits.beside,
            )
        )

    def _parts(self, traits: Traits, seqs: int) -> tuple[int, ...]:
        fixed = self.fitter.at.overrides.micro_batches
        if fixed:
            return (fixed,)
        return tuple(p for p in traits.parts if p <= max(2, seqs)) or traits.parts[:1]

    def _rows(self, seqs: int, balance: int) -> list[int]:
        """Rows of a sweep to try, most first: up to the balance, or a few where memory is short."""
        least = seqs + self._chunk
        most = max(least, min(balance, MOST_ROWS))
        return sorted({most, max(least, (most + least) // 2), least}, reverse=True)

    @property
    def _chunk(self) -> int:
        return self.fitter.at.overrides.chunk

    def _balance(self, fit: Fit) -> int:
        """Rows at which arithmetic takes as long as the link: n_real."""
        if fit.split.streamed < 1e-6:
            return fit.choice.seqs + RESIDENT_ROWS
        few, more = fit.choice.rows, fit.choice.rows + 4096
        prompt = round(self.fitter.job.prompt)
        decodes = Load(fit.choice.seqs, fit.choice.seqs * self.fitter.job.decode_kv)
        loads = [
            decodes._replace(chunk_rows=n - fit.choice.seqs, chunk_kv=prompt) for n in (few, more)
        ]
        alone = fit.split._replace(cpu=0.0)  # n_real is where the device's own work balances
        low, high = (self.fitter.lanes(fit.policy, alone, load) for load in loads)
        crossings = []
        for lane in (CPU, GPU, D2H):
            gap = low["link"] - low.get(lane, 0.0)
            closing = (high.get(lane, 0.0) - low.get(lane, 0.0)) - (high["link"] - low["link"])
            if closing > 0:
                crossings.append(few + gap / closing * (more - few))
        return max(
            fit.choice.seqs + self._chunk, min(MOST_ROWS, round(min(crossings, default=MOST_ROWS)))
        )


def _seconds(fit: Fit) -> float:
    return fit.seconds
