"""What this engine's own schedules would give where others published figures. Simulated, all of it.

The same requests, un-padded; weights cross the link once per sweep, from pinned memory; prompts are
read beside decodes; sweeps overlap. The card's kernels reach the shares of the roofs that the
published ones were found to reach. Attention on the processor reads KV at the share of the memory's
rate that was measured on the L4's host: on a T4's, eleven times as fast as the published one's is
priced, so that what is gained there is not the schedule's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from headrace.planner.peaks import tier_peaks
from headrace.planner.policy_file import Setting, read_policy
from headrace.planner.prices import Prices, Sketches, price
from headrace.planner.published import MODEL, Published, Row, as_published
from headrace.planner.simulate import FewRows, Prediction, simulate
from headrace.planner.sweeps import Load
from headrace.planner.traits import Traits
from headrace.specs.hardware import CPU_FLOPS
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.workload import Workload

_SCHEDULES = ("two_group", "cgopipe")
_SEQS = (750, 1500, 3000, 6000)
_PREFILL_ROWS = (512, 2048, 8192, 16384, 32768)
_ROWS_A_PART = 1024  # of cgopipe
_STEPS = 10_000
_PLAYED = 3


@dataclass(frozen=True)
class Ours:
    """The best policy found for a published row's requests, and its prediction."""

    row: Row
    kernels: str
    policy: Policy
    prediction: Prediction

    @property
    def gain(self) -> float:
        """Simulated over published tokens per second."""
        return self.prediction.decode_tokens_per_second / self.row.tokens_per_second


def ours(published: Published, row: Row, *, tensor_cores: bool) -> Ours:
    """The fastest of a few policies that fit the row's machine. ``tensor_cores``: kernels reach
    their share of the card's full peak instead of that of the units the published ones use."""
    known = known_hardware(row.machine).hardware
    model = known_model(MODEL).spec
    used = as_published(known, published, model, Traits("kernels", tensor_cores=tensor_cores))
    roofs = {**used.roofs, CPU_FLOPS: known.roofs[CPU_FLOPS]}
    hardware = replace(used, roofs=roofs, task_seconds=known.task_seconds)
    requests = (row.mu or 0) * (row.parts or 0)
    job = Workload.uniform(requests, row.prompt_mean, row.gen)
    setting = Setting(model, page_layout(model), hardware, job)
    fitting = (p for p in _ranked(setting) if _fits(setting, p.policy))
    played = [(p.policy, simulate(FewRows(p), job)) for p in islice(fitting, _PLAYED)]
    policy, prediction = min(played, key=lambda each: each[1].seconds)
    return Ours(row, "tensor cores" if tensor_cores else "as published", policy, prediction)


def _ranked(at: Setting) -> list[Prices]:
    """Prices of some policies, the fastest first by their closed form."""
    sketches = Sketches()
    found = [price(at.model, at.pages, p, at.hardware, sketches) for p in _policies(at)]
    seconds = [simulate(FewRows(_Estimated(p)), at.workload, _STEPS).seconds for p in found]
    order = sorted(range(len(found)), key=lambda i: seconds[i])
    return [found[i] for i in order]


class _Estimated:
    """Times by the closed form."""

    def __init__(self, prices: Prices) -> None:
        self.policy = prices.policy
        self.seconds = prices.estimate

    def bound(self, load: Load) -> float:
        return 0.0

    def lanes(self, load: Load) -> Mapping[str, float]:
        return {}

    def bytes_moved(self, load: Load) -> Mapping[str, float]:
        return {}


def _policies(at: Setting) -> Iterator[Policy]:
    for seqs in dict.fromkeys(min(seqs, at.workload.requests) for seqs in _SEQS):
        for rows in _PREFILL_ROWS:
            for schedule in _SCHEDULES:
                parts = 2 if schedule == "two_group" else -(-(seqs + rows) // _ROWS_A_PART)
                written = {
                    "schedule": schedule,
                    "max_seqs": seqs,
                    "max_rows": seqs + rows,
                    "micro_batches": parts,
                }
                yield read_policy(written, at)


def _fits(at: Setting, policy: Policy) -> bool:
    peaks = tier_peaks(at.model, at.pages, policy, at.hardware).values()
    return all(p.planned_bytes <= (p.capacity_bytes or p.planned_bytes) for p in peaks)
