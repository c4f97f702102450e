"""The nearest change that would make a request feasible: a number, not a shrug."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headrace.errors import BudgetError
from headrace.planner.candidates import Situation
from headrace.planner.device_fit import Choice, Fitter
from headrace.specs.units import format_bytes

_MOST = 1 << 44  # bytes; no machine has more
_FINE = 1 << 24


def device_refusal(at: Situation, schedule: str) -> BudgetError:
    """Why ``schedule`` does not fit beside the accelerator, and which memory would do."""
    device = at.hardware.capacity.get("device", 0) if at.device_bytes is None else at.device_bytes
    wanted = _least(lambda n: _fits(replace(at, device_bytes=n), schedule), device)
    enough = _least(lambda n: _fits(replace(at, budget_bytes=n), schedule), at.budget_bytes)
    hints = []
    if wanted is not None:
        hints.append(f"an accelerator with {format_bytes(wanted)}")
    if enough is not None:
        hints.append(f"{format_bytes(enough)} of host memory")
    if not hints:
        hints.append("both more host and more device memory, or another schedule")
    return BudgetError(
        f"schedule {schedule} does not fit this machine with one sequence at once",
        smallest_bytes=enough or at.budget_bytes,
        got=f"{format_bytes(device)} on the device, {format_bytes(at.budget_bytes)} of the host's",
        hint=", or ".join(hints),
    )


def _fits(at: Situation, schedule: str) -> bool:
    """Whether one sequence at once does."""
    fixed = at.overrides
    seqs = fixed.max_seqs or 1
    rows = fixed.max_rows or seqs + fixed.chunk
    parts = fixed.micro_batches or (2 if schedule == "two_group" else 1)
    on_device = float(schedule == "flexgen")
    fitter = Fitter(at)
    shares = (0.0, on_device) if on_device else (0.0,)
    return any(
        fitter.fit(Choice(schedule, seqs, rows, parts, kv_on_device=share, beside=beside))
        for share in shares
        for beside in (schedule in ("cgopipe", "two_group"),)
    )


def _least(fits: Callable[[int], bool], low: int) -> int | None:
    """The smallest number above ``low`` that fits, to a few MB; None if none does."""
    high = max(low, _FINE)
    while not fits(high):
        low, high = high, high * 2
        if high > _MOST:
            return None
    while high - low > _FINE:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
