"""How fast a set of files can be read: sequential requests, several in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import StorageError
from headrace.memory.arena import HUGE_FROM, Arena
from headrace.memory.disk import ALIGN, DiskReader, FileRange

Clock = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """``bytes`` read in ``seconds`` with ``depth`` requests in flight."""

    bytes: int
    seconds: float
    depth: int

    @property
    def bytes_per_second(self) -> float:
        """The rate."""
        return self.bytes / max(self.seconds, 1e-9)


def measure_rate(
    reader: DiskReader,
    nbytes: int,
    depth: int,
    clock: Clock,
    request_bytes: int = 4 << 20,
    start: int = 0,
) -> Rate:
    """Read about ``nbytes`` in file order, ``depth`` requests in flight, from byte ``start`` of
    the files laid end to end; wraps round at the end. Takes ``depth * request_bytes`` memory, of an
    arena as a run's: into memory in small pages some disks deliver at a third of their rate.

    Raises StorageError as ``DiskReader.read``, or when there is nothing to read.
    """
    requests = _requests(reader, nbytes, request_bytes, start)
    turn = iter(requests)
    lock = threading.Lock()
    totals: list[int] = []
    faults: list[BaseException] = []

    def worker(memory: memoryview) -> None:
        total = 0
        try:
            while not faults:
                with lock:
                    request = next(turn, None)
                if request is None:
                    break
                total += reader.read((request,), memory)
        except BaseException as fault:
            faults.append(fault)
        totals.append(total)

    size = request_bytes // ALIGN * ALIGN
    arena = Arena("reads", max(HUGE_FROM, depth * size))
    parts = [arena.take(str(i), size) for i in range(depth)]
    for part in parts:
        part[::ALIGN] = bytes(len(part[::ALIGN]))  # page faults are not the disk's time
    threads = [threading.Thread(target=worker, args=(part,), daemon=True) for part in parts]
    began = clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = clock()
    parts.clear()
    arena.close()
    if faults:
        raise faults[0]
    return Rate(sum(totals), ended - began, depth)


def _requests(reader: DiskReader, nbytes: int, request_bytes: int, start: int) -> list[FileRange]:
    request_bytes = request_bytes // ALIGN * ALIGN
    sizes = [path.stat().st_size for path in reader.files]
    ring = [
        FileRange(file, offset, min(request_bytes, size - offset))
        for file, size in enumerate(sizes)
        for offset in range(0, size, request_bytes)
    ]
    if not ring or request_bytes < ALIGN:
        raise StorageError("nothing to measure a disk with", expected="files with bytes in them")
    first = start // request_bytes
    requests: list[FileRange] = []
    total = 0
    while total < nbytes:
        requests.append(ring[(first + len(requests)) % len(ring)])
        total += requests[-1].nbytes
    return requests
