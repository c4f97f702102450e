"""How fast pages cross the link to an accelerator, each way: copies from and to pinned memory,
through torch's interface for any kind of accelerator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.errors import StorageError
from headrace.planner.calibrate import Clock, near_best_rate
from headrace.specs.hardware import D2H, H2D

REQUESTS = (1, 4)
"""Sizes of a copy, in pages: streamed pages come one by one, or as a few in one packet."""

IN_FLIGHT = 4
"""Copies that are waited for together: a run, too, has the next ones queued."""

MOST_BYTES = 64 << 20
"""The largest copy: pinned memory is scarce, and larger ones are no faster."""


def copy(source: Tensor, into: Tensor) -> None:
    """Begin a copy; it may still go on when this returns."""
    into.copy_(source, non_blocking=True)


@dataclass(frozen=True)
class Accelerator:
    """All that measuring needs of one: where its memory is, how to wait for everything that was
    begun on it, whether host memory is pinned for it, and how a copy is begun."""

    name: str
    device: torch.device
    synchronize: Callable[[], None]
    pins: bool = True
    copy: Callable[[Tensor, Tensor], None] = copy


class CopyRate(NamedTuple):
    """Bytes/s of copies of ``request_bytes`` each, to the device and back."""

    request_bytes: int
    h2d: float
    d2h: float


def accelerator_here() -> Accelerator | None:
    """The accelerator that torch would use; None without one, with one whose driver fails, or with
    a torch before 2.6, which does not tell."""
    found = getattr(torch, "accelerator", None)
    if found is None:
        return None
    try:
        device = found.current_accelerator() if found.is_available() else None
    except RuntimeError:
        return None
    if device is None:
        return None
    return Accelerator(_name_of(device), device, lambda: found.synchronize(device))


def measure_link(
    accelerator: Accelerator, page_bytes: int, clock: Clock, seconds: float
) -> list[CopyRate]:
    """Copies of a page and of several at once, each way, in about ``seconds``; of each size a rate
    near the best. Raises StorageError where the accelerator or pinned memory cannot be used."""
    sizes = sorted({min(count * page_bytes, MOST_BYTES) for count in REQUESTS})
    try:
        return [_rate(accelerator, size, clock, seconds / (2 * len(sizes))) for size in sizes]
    except RuntimeError as error:
        raise StorageError(
            f"the link to {accelerator.name} could not be measured", got=str(error)[:200]
        ) from error


def link_roofs(rates: list[CopyRate]) -> dict[str, float]:
    """The roofs that they are: the most of any size."""
    if not rates:
        return {}
    return {H2D: max(rate.h2d for rate in rates), D2H: max(rate.d2h for rate in rates)}


def _rate(accelerator: Accelerator, size: int, clock: Clock, seconds: float) -> CopyRate:
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=accelerator.pins)
    there = torch.zeros(size, dtype=torch.uint8, device=accelerator.device)
    to_device = partial(_copies, accelerator, host, there)
    to_host = partial(_copies, accelerator, there, host)
    return CopyRate(
        size,
        near_best_rate(to_device, clock, seconds),
        near_best_rate(to_host, clock, seconds),
    )


def _copies(accelerator: Accelerator, source: Tensor, into: Tensor) -> float:
    """Copies in flight together, until all of them are done; the bytes that they moved."""
    for _ in range(IN_FLIGHT):
        accelerator.copy(source, into)
    accelerator.synchronize()
    return float(IN_FLIGHT * source.nbytes)


def _name_of(device: torch.device) -> str:
    """What its maker calls it, where torch says so; else its kind."""
    say = getattr(torch.get_device_module(device), "get_device_name", None)
    try:
        return str(say(device)) if say else device.type
    except RuntimeError:
        return device.type
