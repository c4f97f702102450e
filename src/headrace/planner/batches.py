"""Jobs on a runtime without refill: a batch is read, then decoded to its end, then the next one.

Beside ``simulate``, which plays jobs through the engine's own batcher: this is what published
runtimes do instead (``traits``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.planner.decided import rounded
from headrace.planner.prices import Prices, Sketches, price
from headrace.planner.simulate import FewRows, Ledger, Prediction, simulate
from headrace.planner.sweeps import Load
from headrace.planner.traits import Traits
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload


def simulate_as(
    traits: Traits,
    model: ModelSpec,
    pages: tuple[Page, ...],
    policy: Policy,
    hardware: Hardware,
    workload: Workload,
) -> Prediction:
    """One play of ``workload`` by a runtime of these traits: batches of ``policy.max_seqs``
    requests. ``low`` and ``high`` equal ``seconds``. Raises UsageError for a policy that cannot
    be honoured, LineError for a request that does not fit the policy's KV blocks."""
    sketches, used = Sketches(), traits.hardware(hardware)

    def priced(schedule: str | None) -> Prices:
        return price(model, pages, traits.policy(policy, schedule), used, sketches)

    decode = priced(traits.schedule)
    if traits.refill:
        return simulate(FewRows(decode), workload)
    phases = _Phases(decode, priced(traits.prefill_schedule) if traits.own_prefill else decode)
    return _Batches(phases, traits).play(workload, policy.max_seqs)


@dataclass(frozen=True)
class _Phases:
    """Prices of sweeps of prompts only, and of the others."""

    decode: Prices
    prefill: Prices

    def of(self, load: Load) -> Prices:
        return self.decode if load.decodes else self.prefill


class _Batches:
    def __init__(self, phases: _Phases, traits: Traits) -> None:
        self._phases = phases
        self._traits = traits
        self._ledger = Ledger(phases)
        self._first_tokens: list[float] = []

    def play(self, workload: Workload, seqs: int) -> Prediction:
        lengths = list(zip(workload.prompt_lens, workload.gen_lens, strict=True))
        if self._traits.padded:
            longest = max(workload.prompt_lens), max(workload.gen_lens)
            lengths = [longest] * len(lengths)
        for start in range(0, len(lengths), seqs):
            self._batch(lengths[start : start + seqs])
        found = self._ledger.prediction(workload, self._first_tokens)
        return replace(found, assumed=workload.assumed)

    def _batch(self, lengths: list[tuple[int, int]]) -> None:
        prompts = sum(prompt for prompt, _ in lengths)
        self._add(Load(0, 0, prompts, rounded(prompts // len(lengths)), len(lengths)))
        self._first_tokens += [self._ledger.seconds] * len(lengths)
        for active, kv in _steps(lengths):
            self._add(Load(active, rounded(kv), samples=active))

    def _add(self, load: Load) -> None:
        if self._traits.drain:
            self._ledger.add_taking(load, self._phases.of(load).cold_seconds(load))
        else:
            self._ledger.add(load)


def _steps(lengths: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(sequences, tokens that they attend to) of each step behind the first token."""
    by_end = sorted(lengths, key=lambda pair: pair[1])
    active, held, ended = len(by_end), sum(prompt for prompt, _ in by_end), 0
    for step in range(1, by_end[-1][1]):
        while by_end[ended][1] <= step:
            active, held, ended = active - 1, held - by_end[ended][0], ended + 1
        yield active, held + active * step
