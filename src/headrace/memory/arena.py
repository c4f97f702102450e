"""An arena: one mapping per tier from which every buffer of a run is cut, once."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from headrace.errors import BudgetError, HeadraceError
from headrace.specs.units import format_bytes

HUGE_FROM = 64 << 20
"""Arenas of as many bytes ask for huge memory pages."""


class Region(NamedTuple):
    """Where a buffer lies in its arena, in bytes."""

    offset: int
    nbytes: int


class Arena:
    """``capacity_bytes`` of one tier, handed out front to back and never taken back.

    The memory is anonymous and private: it is zero, and costs nothing until it is written.
    ``close`` frees it as soon as nobody holds a view of it any more.
    """

    def __init__(self, tier: str, capacity_bytes: int) -> None:
        self.tier = tier
        self.capacity_bytes = capacity_bytes
        self._used = 0
        self._layout: dict[str, Region] = {}
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            self._map: mmap.mmap | None = mmap.mmap(-1, max(1, capacity_bytes), flags=flags)
        except (OSError, OverflowError, ValueError) as fault:
            raise HeadraceError(
                f"cannot map {format_bytes(capacity_bytes)} for tier {tier}", got=str(fault)
            ) from fault
        if capacity_bytes >= HUGE_FROM:
            self._ask_for_huge_pages(self._map)

    @property
    def used(self) -> int:
        """Bytes handed out, in whole memory pages."""
        return -(-self._used // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def layout(self) -> Mapping[str, Region]:
        """Name -> region of everything handed out, in order."""
        return MappingProxyType(self._layout)

    def take(self, name: str, nbytes: int, align: int = 4096) -> memoryview:
        """``nbytes`` of zeroed, writable memory aligned to ``align`` (at most a memory page).

        Raises BudgetError when the arena cannot hold it, naming what was asked for.
        """
        assert align in (1 << i for i in range(13)), align
        if self._map is None or name in self._layout or nbytes < 0:
            raise HeadraceError(f"arena {self.tier}: cannot hand out {name!r} ({nbytes} bytes)")
        start = -(-self._used // align) * align
        if start + nbytes > self.capacity_bytes:
            raise BudgetError(
                f"tier {self.tier} cannot hold {name}",
                smallest_bytes=start + nbytes,
                expected=f"{format_bytes(nbytes)} more beside {format_bytes(start)}",
                got=f"a capacity of {format_bytes(self.capacity_bytes)}",
            )
        self._used = start + nbytes
        self._layout[name] = Region(start, nbytes)
        return memoryview(self._map)[start : start + nbytes]

    def close(self) -> None:
        """Let go of the memory. Idempotent; views handed out stay valid until dropped."""
        if self._map is not None:
            with contextlib.suppress(BufferError):  # views are out: freed with the last of them
                self._map.close()
            self._map = None

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _ask_for_huge_pages(area: mmap.mmap) -> None:
        with contextlib.suppress(OSError):  # a kernel without them is slower, not wrong
            area.madvise(mmap.MADV_HUGEPAGE)
