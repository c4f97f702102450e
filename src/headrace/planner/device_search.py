"""Which policy beside an accelerator: choices enumerated, fitted, ranked by closed forms; the best
few are played."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from headrace.planner.candidates import counts_near
from headrace.planner.device_fit import Choice, Fit, Fitter
from headrace.planner.device_pages import placed
from headrace.planner.job_estimate import course_of
from headrace.planner.prices import DevicePrices
from headrace.planner.simulate import FewRows, job_seconds
from headrace.planner.sweeps import Load
from headrace.planner.tabulated import Tabulated
from headrace.schedule.lanes import CPU, D2H, GPU
from headrace.specs.policy import Policy

MOST_SEQS = 8192
MOST_ROWS = 16_384
RESIDENT_ROWS = 2048  # prompt rows beside decodes where nothing streams: enough for full speed
_DRAWN = (4, 6)  # layers of sketches: a search plays many, each at few loads

_PARTS = (2, 4, 8, 16)
_COUNTS = (0.6, 0.7, 0.8, 0.87, 0.93, 1.07, 1.12, 1.2, 1.3, 1.45, 1.6)
_BESIDE = (0.02, 0.04, 0.07, 0.12, 0.2, 0.35, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 3.0)
"""Factors of the sequences, and of the prompt rows, of choices near one."""

_BOTH = tuple((f, f**power) for f in (0.4, 0.5, 1.8, 2.1, 2.4) for power in (0, 1, 2))
"""Of both at once, where the job is short: one without the other may only seem to cost."""

_WORSE = 1.25  # once this much slower than the best, fewer sequences are not looked at


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
    coarse: bool = False  # a baseline: fewer choices are looked at


OWN = (
    Traits("cgopipe", _PARTS),
    Traits("cgopipe", _PARTS, beside=True),
    Traits("two_group", (2,)),
    Traits("two_group", (2,), beside=True),
    Traits("resident", (1,)),
)
"""Families that the planner chooses from; the others are baselines."""


class DeviceSearch:
    """Fits of one situation, best first."""

    def __init__(self, fitter: Fitter) -> None:
        self.fitter = fitter
        self._prices: dict[Policy, Tabulated] = {}

    def ranked(self, traits: Traits) -> list[Fit]:
        """Fits of a family, the shortest job first by the closed form; none if nothing fits."""
        found: list[Fit] = []
        if not self._fits_at_all(traits):
            return found
        for seqs in self._counts(traits.most_seqs, traits.coarse):
            at_count = self._of_count(traits, seqs)
            found += at_count
            if found and at_count:
                best = min(fit.seconds for fit in found)
                if min(fit.seconds for fit in at_count) > _WORSE * best:
                    break
        return sorted(found, key=_seconds)

    def known(self) -> list[Fit]:
        """The policy that is known of a machine like this one, if it fits."""
        policy = self.fitter.at.near
        if policy is None or not policy.on_device:
            return []
        choice = Choice(
            policy.schedule,
            policy.max_seqs,
            policy.max_rows,
            policy.micro_batches,
            policy.compute_rows,
            policy.kv_on_device,
            beside=bool(policy.cpu_experts),
        )
        fit = self.fitter.fit(choice)
        return [fit] if fit else []

    def played(
        self, fits: Iterable[Fit], steps: int, *, closed: bool = False
    ) -> Iterator[tuple[float, Fit, Policy]]:
        """The job of each of ``fits`` that still fits once its pages are placed, with what a play
        of its typical sweeps is longer than the closed form, unless ``closed`` or read from disk,
        which bounds all alike."""
        at = self.fitter.at
        for fit in fits:
            policy = placed(self.fitter, fit)
            if policy is None:
                continue
            times = self.times(policy, played=not (closed or policy.on_disk))
            yield job_seconds(times, at.workload, steps, at.known.decisions), fit, policy

    def around(self, fit: Fit) -> list[Fit]:
        """Fits near ``fit``, best first by the closed form: other numbers of sequences, of prompt
        rows and of micro-batches. Only those that overrides leave free differ."""
        choice, fixed = fit.choice, self.fitter.at.overrides
        most = min(MOST_SEQS, self.fitter.at.workload.requests)
        counts, rows = (
            (_COUNTS, _BESIDE) if self.fitter.at.is_small else (_COUNTS[::2], _BESIDE[::2])
        )
        found: set[Choice] = set()
        for factor in () if fixed.max_seqs else counts:
            seqs = max(1, min(most, round(choice.seqs * factor)))
            found.add(_moved(choice, seqs, choice.rows + seqs - choice.seqs, choice.parts))
        free = self.fitter.at.is_small and not (fixed.max_seqs or fixed.max_rows)
        for factor, beside in _BOTH if free else ():
            seqs = max(1, min(most, round(choice.seqs * factor)))
            extra = max(self._chunk, round((choice.rows - choice.seqs) * beside))
            found.add(_moved(choice, seqs, seqs + extra, choice.parts))
        for factor in () if fixed.max_rows else rows:
            extra = max(self._chunk, round((choice.rows - choice.seqs) * factor))
            found.add(_moved(choice, choice.seqs, choice.seqs + extra, choice.parts))
        if choice.schedule not in ("two_group", "resident") and not fixed.micro_batches:
            for factor in (0.5, 0.75, 1.5, 2.0):
                parts = max(1, min(24, round(choice.parts * factor)))
                found.add(_moved(choice, choice.seqs, choice.rows, parts))
        fits = (self.fitter.fit(other) for other in found - {choice} if other.parts <= other.rows)
        return sorted((fit for fit in fits if fit), key=_seconds)

    def times(self, policy: Policy, *, played: bool = True) -> FewRows:
        """Times of a policy's sweeps: by the closed form, corrected by plays of the loads that
        differ most if ``played``."""
        if policy not in self._prices:
            at = self.fitter.at
            prices = DevicePrices(at.kinds, policy, at.hardware, at.known.sketches, _DRAWN)
            self._prices[policy] = Tabulated(prices, course_of(self.fitter.job, policy).loads)
        found = self._prices[policy]
        return FewRows(found if played else found.closed)

    def _fits_at_all(self, traits: Traits) -> bool:
        """Whether the smallest of a family's policies does."""
        seqs = self.fitter.at.overrides.max_seqs or 1
        parts = self._parts(traits, seqs)
        return any(self._fit(traits, seqs, seqs + self._chunk, n, 1 << 30) for n in parts)

    # -- choices -----------------------------------------------------------------------------

    def _counts(self, most: int, coarse: bool = False) -> list[int]:
        """Sequences at once: 1, 2, 3, 4, 6, 8 ... all of the job; most first."""
        fixed = self.fitter.at.overrides
        if fixed.max_seqs:
            return [fixed.max_seqs]
        top = max(1, min(most, self.fitter.at.workload.requests, fixed.max_rows or most))
        if self.fitter.at.near:
            return counts_near(self.fitter.at.near, top)
        steps = (2,) if coarse else (2, 3)
        counts = {top} | {n * 2**p for p in range(13) for n in steps if n * 2**p <= top} | {1}
        return sorted(counts, reverse=True)

    def _of_count(self, traits: Traits, seqs: int) -> list[Fit]:
        parts = self._parts(traits, seqs)
        middle = parts[len(parts) // 2]
        first = self._fit(traits, seqs, seqs + self._chunk, middle, 1 << 30)
        if first is None:
            tried = [self._fit(traits, seqs, seqs + self._chunk, p, 1 << 30) for p in parts]
            return [fit for fit in tried if fit]
        balance = self._balance(first)

        def fit(rows: int, part: int) -> Fit | None:
            return self._fit(traits, seqs, rows, part, min(balance, rows))

        tried = [first, *(fit(rows, middle) for rows in self._rows(seqs, balance, traits.coarse))]
        found = [fit for fit in tried if fit]
        # rows and micro-batches hardly depend on one another
        rows = min(found, key=_seconds).choice.rows
        others = [fit(rows, part) for part in parts if part != middle]
        return found + [fit for fit in others if fit]

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

    def _rows(self, seqs: int, balance: int, coarse: bool) -> list[int]:
        """Rows of a sweep to try, most first: up to the balance, or a few where memory is short."""
        least = seqs + self._chunk
        most = max(least, min(balance, MOST_ROWS))
        between = () if coarse else (max(least, (most + least) // 2),)
        return sorted({most, *between, least}, reverse=True)

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


def _moved(choice: Choice, seqs: int, rows: int, parts: int) -> Choice:
    """``choice`` with these numbers; prompts fill as many rows as there are."""
    rows = min(MOST_ROWS, rows)
    limit = rows if choice.compute_rows >= choice.rows else min(choice.compute_rows, rows)
    return replace(choice, seqs=seqs, rows=max(rows, seqs + 1), parts=parts, compute_rows=limit)


def _seconds(fit: Fit) -> float:
    return fit.seconds
