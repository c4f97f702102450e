"""Reads single rows of a table (embeddings of the batch's tokens) through a bounce buffer."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from headrace.memory.disk import DiskReader, FileRange

BOUNCE_BYTES = 1 << 20
"""Memory taken beside the destination: blocks land here, rows are copied out."""

IN_FLIGHT = 32
"""Requests at once: reads of one block wait for the disk's latency, and behind pages that are being
read, not for its rate."""


class RowReader:
    """Gathers rows from disk. One call at a time; others wait."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._bounce: mmap.mmap | None = None

    def read(
        self,
        rows: Sequence[int],
        ranges: Mapping[int, tuple[FileRange, int]],
        row_bytes: int,
        into: memoryview,
    ) -> int:
        """Put row ``rows[i]`` at ``i * row_bytes`` of ``into``; returns the bytes read.

        ``ranges`` holds for each distinct row, ascending, its blocks and where it starts.
        """
        total = 0
        targets: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            targets.setdefault(row, []).append(place * row_bytes)
        with self._lock:
            bounce = self._memory(max((r.span for r, _ in ranges.values()), default=0))
            for batch in _batches(ranges, len(bounce)):
                # Rows in the same blocks share a place; the last of them reaches furthest.
                reads = {blocks.at: blocks for blocks, _ in batch.values()}
                total += self._fetch(list(reads.values()), bounce)
                for row, (blocks, lead) in batch.items():
                    source = bounce[blocks.at + lead : blocks.at + lead + row_bytes]
                    for target in targets[row]:
                        into[target : target + row_bytes] = source
        return total

    def close(self) -> None:
        """Give the threads back. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown()

    def _fetch(self, reads: list[FileRange], bounce: memoryview) -> int:
        if (got := self._reader.read_small(reads, bounce, IN_FLIGHT)) is not None:
            return got
        shares = [reads[i::IN_FLIGHT] for i in range(min(IN_FLIGHT, len(reads)))]
        if len(shares) < 2:
            return self._reader.read(reads, bounce)
        return sum(self._threads().map(lambda share: self._reader.read(share, bounce), shares))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # loads logging: not at start-up

            self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="headrace-rows")
        return self._pool

    def _memory(self, least: int) -> memoryview:
        if self._bounce is None or len(self._bounce) < least:
            self._bounce = mmap.mmap(-1, max(least, BOUNCE_BYTES))
        return memoryview(self._bounce)


def _batches(
    ranges: Mapping[int, tuple[FileRange, int]], room: int
) -> list[dict[int, tuple[FileRange, int]]]:
    """Split into groups that fit ``room`` bytes, each range given its place there.

    Rows in the same blocks share them.
    """
    batches: list[dict[int, tuple[FileRange, int]]] = [{}]
    at = 0
    previous: FileRange | None = None
    for row, (blocks, lead) in ranges.items():
        if at + blocks.span > room:
            batches.append({})
            at, previous = 0, None
        if previous is not None and blocks[:2] == previous[:2] and blocks.span == previous.span:
            placed = previous._replace(nbytes=max(previous.nbytes, blocks.nbytes))
        else:
            placed = blocks._replace(at=at)
            at += blocks.span
        batches[-1][row] = (placed, lead)
        previous = placed
    return batches
