"""The nearest change that would make a request feasible: a number, not a shrug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from headrace.errors import BudgetError
from headrace.planner.candidates import Situation, smallest
from headrace.planner.device_fit import Choice, Fitter
from headrace.planner.plan import Overrides
from headrace.specs.units import format_bytes
from headrace.specs.workload import Workload

_MOST = 1 << 44  # bytes; no machine has more
_FINE = 1 << 20


def host_refusal(at: Situation) -> BudgetError:
    """Why no policy of the processor fits the budget, and what would: more memory, fewer
    sequences or rows at once where they were fixed, shorter lines."""
    least = at.map_of(smallest(at)).total_bytes
    hints = [f"--memory {least}", *_relaxed(at)]
    tokens = _longest_that_fits(at)
    if tokens:
        hints.append(f"lines of at most {tokens} tokens, prompt and output together")
    return BudgetError(
        "the memory budget is too small for this model and job",
        smallest_bytes=least,
        expected=f"at least {least} bytes ({format_bytes(least)})",
        got=f"{at.budget_bytes} bytes ({format_bytes(at.budget_bytes)})",
        hint=", or ".join(hints),
    )


def _relaxed(at: Situation) -> Iterator[str]:
    """What was fixed and need not be, or could be less, for the budget to do."""
    fixed = at.overrides
    numbers = {"--max-num-seqs": "max_seqs", "--max-num-batched-tokens": "max_rows"}
    for flag, name in numbers.items():
        asked = getattr(fixed, name)
        if asked is not None and _host_fits(_with(at, **{name: _least_of(fixed, name)})):
            low, high = _least_of(fixed, name), asked
            while high - low > 1:
                middle = (low + high) // 2
                fits = _host_fits(_with(at, **{name: middle}))
                low, high = (middle, high) if fits else (low, middle)
            yield f"{flag} {low}"
    if fixed.schedule == "resident" and _host_fits(_with(at, schedule=None)):
        yield "weights that stream (no --schedule resident)"


def _least_of(fixed: Overrides, name: str) -> int:
    return max(1, fixed.max_seqs or 1) if name == "max_rows" else 1


def _with(at: Situation, **changes: object) -> Situation:
    return replace(at, overrides=replace(at.overrides, **changes))  # type: ignore[arg-type]


def _host_fits(at: Situation) -> bool:
    return at.map_of(smallest(at)).total_bytes <= at.budget_bytes


def _longest_that_fits(at: Situation) -> int:
    """Tokens of the longest request that could be; 0 if none, or the budget is not the reason."""

    def fits(tokens: int) -> bool:
        return _host_fits(replace(at, workload=Workload.uniform(1, tokens, 1)))

    low, high = 0, at.workload.longest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


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
    """The smallest number above ``low`` that fits, to a MB; None if none does."""
    high = max(low, _FINE)
    while not fits(high):
        low, high = high, high * 2
        if high > _MOST:
            return None
    while high - low > _FINE:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
