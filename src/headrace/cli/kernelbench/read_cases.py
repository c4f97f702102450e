"""Pages read from disk past the page cache, as the engine's lanes read them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.cli.kernelbench.case import Case
from headrace.memory.disk import DiskReader
from headrace.memory.disk_rate import measure_rate

FILE_BYTES, QUICK_FILE_BYTES = 256 << 20, 64 << 20
PIECE = 16 << 20
DEPTHS = (1, 2, 4)


@contextmanager
def read_file(folder: Path, quick: bool) -> Iterator[DiskReader]:
    """A reader of a new file of zeros in ``folder``, durable on its disk, gone afterwards."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="headrace-bench-") as file:
        for _ in range((QUICK_FILE_BYTES if quick else FILE_BYTES) // PIECE):
            file.write(b"\x5a" * PIECE)
        file.flush()
        reader = DiskReader([file.name])
        try:
            yield reader
        finally:
            reader.close()


def disk_roof(reader: DiskReader, clock: Callable[[], float], quick: bool) -> float:
    """Bytes/s: the best of several depths with the largest requests."""
    nbytes = QUICK_FILE_BYTES if quick else FILE_BYTES
    rates = (measure_rate(reader, nbytes, depth, clock, PIECE) for depth in DEPTHS)
    return max(rate.bytes_per_second for rate in rates)


def read_pages(
    reader: DiskReader, clock: Callable[[], float], quick: bool
) -> Iterator[tuple[Case, float]]:
    """Pages of 1, 4 and 16 MiB with two in flight, and the seconds of one page each."""
    nbytes = QUICK_FILE_BYTES if quick else FILE_BYTES
    for size in (4 << 20,) if quick else (1 << 20, 4 << 20, 16 << 20):
        rate = measure_rate(reader, nbytes, 2, clock, size)
        case = Case(
            kernel="read",
            shape=f"{size >> 20} MiB, 2 in flight",
            format=reader.mode,
            run=lambda i: None,
            bytes=float(size),
            bytes_from="disk",
        )
        yield case, size / rate.bytes_per_second
