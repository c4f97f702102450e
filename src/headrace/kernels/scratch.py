"""A bump allocator over the compute lane's scratch buffer: what an op body needs for a moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.errors import ScheduleError
from headrace.specs.scratch import ALIGN


class Scratch:
    """Hands out pieces of ``memory`` (1-D uint8, 64-byte aligned) one after the other.

    A piece is valid until the next task of the lane. Costs about two microseconds a piece.
    Raises ScheduleError when the declared scratch is too small (our bug).
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self.used = 0

    def take(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor of ``shape``."""
        size = math.prod(shape) * dtype.itemsize
        start = self.used
        if start + size > self._memory.numel():
            raise ScheduleError(
                "scratch is smaller than the op body needs",
                expected=f"at least {start + size} bytes",
                got=f"{self._memory.numel()} bytes",
                hint="correct the formula in specs/scratch.py",
            )
        self.used = start + -(-size // ALIGN) * ALIGN
        return self._memory[start : start + size].view(dtype).view(shape)

    def rest(self) -> Tensor:
        """The memory not handed out yet."""
        return self._memory[self.used :] if self.used else self._memory
