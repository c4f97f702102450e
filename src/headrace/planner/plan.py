"""A plan: the policy chosen, what memory it takes, what it is expected to do, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.planner.memory_map import MemoryMap
from headrace.planner.profile import weights_of
from headrace.specs.model import ModelSpec
from headrace.specs.policy import ACTIVATIONS, Policy

if TYPE_CHECKING:
    from headrace.planner.simulate import Prediction


@dataclass(frozen=True)
class Overrides:
    """What the user fixes; None leaves the choice to the planner.

    ``kv_blocks`` counts blocks of ``kv_block`` tokens; the rest as in ``Policy``."""

    schedule: str | None = None
    max_seqs: int | None = None
    max_rows: int | None = None
    ring_slots: int | None = None
    disk_lanes: int | None = None
    micro_batches: int | None = None
    kv_blocks: int | None = None
    kv_block: int = 16
    kv_dtype: str = "f16"
    chunk: int = 64
    threads: int = 1
    kernels: str = "auto"
    activations: str = "int8"


def activations_for(asked: str | None, model: ModelSpec) -> str:
    """``asked`` as a policy holds it, or what is usual. Raises UsageError for what is unknown, or
    is not for weights like ``model``'s."""
    if asked not in (None, *ACTIVATIONS):
        raise UsageError("--activations", expected=" | ".join(ACTIVATIONS), got=asked)
    weights = weights_of(model)
    if asked == "int8" and model.integers is None:
        raise UsageError(
            "activations of int8 are for integer weights",
            got=f"weights in {weights}",
            hint="headrace quantize makes such a model",
        )
    if asked == "bf16" and (weights != "bf16" or model.expert_dtype is not None):
        raise UsageError(
            "activations of bf16 are for weights in bf16",
            got=f"weights in {weights}",
            hint="leave --activations out",
        )
    return asked or Overrides.activations


@dataclass(frozen=True)
class Baseline:
    """A naive or published way to run the same job, priced beside the plan: its policy and what
    it is expected to do, or why it cannot run (``refusal``)."""

    name: str
    policy: Policy | None = None
    prediction: Prediction | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Plan:
    """What was decided, and what it is expected to do.

    ``on_demand_rows`` is the most rows of a sweep for which reading only routed experts is
    predicted to be faster (0: never, or the schedule was asked for). ``notes`` say in words
    what was decided and why; ``smallest_bytes`` is the least budget that would work.
    ``baselines`` are priced by ``search.best_plan`` only; ``chosen`` names the one that the plan
    is, "" when it is the planner's own.
    """

    policy: Policy
    memory: MemoryMap
    prediction: Prediction
    on_demand_rows: int
    smallest_bytes: int
    notes: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    chosen: str = ""

    def schedule_for(self, rows: int) -> str:
        """The schedule for a sweep of ``rows`` rows. It decides the fate of experts only:
        residency and ring are the same."""
        if not self.on_demand_rows:
            return self.policy.schedule
        return "on_demand" if rows <= self.on_demand_rows else "stream"

    @property
    def bound_by(self) -> str:
        """What the job's time goes to: a lane, ``cpu`` or ``disk`` on a machine without device."""
        return self.prediction.bound_by
