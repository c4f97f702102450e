"""Reads weights from disk past the page cache, straight into memory that is given.

O_DIRECT wants offset, length and address aligned; whoever plans reads aligns them outward.
Where a file system refuses, reads are buffered and what they left in the page cache is
dropped; ``mode`` and ``reason`` say so, for the summary.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from headrace.errors import StorageError
from headrace.memory.tiers import page_cache_bytes
from headrace.specs.faults import Faults, no_faults

ALIGN = 4096
"""Alignment of offsets, lengths and addresses, enough for every common disk."""

REQUEST_BYTES = 16 << 20
"""Largest single request: larger ones gain no rate and cannot be cancelled in between."""


Together = Callable[[list[tuple[int, int, int, int, int]], int], int]
"""Reads of (descriptor, offset, bytes that must come, bytes that may, address), so many at a time:
the bytes that came, negative when a read failed or brought too little."""


class FileRange(NamedTuple):
    """Bytes ``offset .. offset + nbytes`` of file number ``file``, to be put at ``at``.

    ``offset`` and ``at`` are multiples of ALIGN; ``nbytes`` need not be. The reader may write
    up to ``span`` bytes at ``at``.
    """

    file: int
    offset: int
    nbytes: int
    at: int = 0

    @property
    def span(self) -> int:
        """``nbytes`` rounded up to ALIGN: the room that the range takes."""
        return align_up(self.nbytes)


def align_up(count: int) -> int:
    """The next multiple of ALIGN."""
    return -(-count // ALIGN) * ALIGN


class DiskReader:
    """Positioned reads from a fixed set of files, from any number of threads at once.

    ``direct=None`` uses O_DIRECT where it works, ``True`` insists, ``False`` never does. If
    ``together`` is given, it reads small ones.
    Raises StorageError when a file cannot be opened, or ``direct`` cannot be honoured.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        direct: bool | None = None,
        faults: Faults = no_faults,
        together: Together | None = None,
    ) -> None:
        self.files = tuple(Path(f) for f in files)
        self._faults = faults
        self._together = together if faults is no_faults else None
        self.reason = "buffered reads were asked for" if direct is False else ""
        self._lock = threading.Lock()
        self._bytes = 0
        self._requests = 0
        self._retired: list[int] = []
        self._direct: list[bool] = []
        self._descriptors: list[int] = []
        self._marks: list[_Mark] = []
        refused: set[int] = set()  # devices that turned O_DIRECT down
        proven: set[int] = set()
        try:
            for path in self.files:
                self._open(path, direct is not False, refused, proven)
        except BaseException:
            self.close()
            raise
        if direct and self.mode != "direct":
            reason = self.reason
            self.close()
            raise StorageError("direct reads are refused", got=reason, hint="allow buffered reads")

    @property
    def mode(self) -> str:
        """``"direct"`` while every file is read past the page cache, else ``"buffered"``."""
        return "direct" if all(self._direct) else "buffered"

    @property
    def bytes_read(self) -> int:
        """Bytes that reads delivered so far."""
        return self._bytes

    @property
    def requests(self) -> int:
        """Requests sent to the operating system so far."""
        return self._requests

    def read(self, reads: Sequence[FileRange], into: memoryview) -> int:
        """Fill ``into`` and return the bytes that came from disk (alignment included).

        ``into`` is writable memory, aligned to ALIGN for direct reads. Raises StorageError
        with file and offset on EIO or when a file is shorter than it was.
        """
        total = requests = 0
        for file, offset, nbytes, at in reads:
            if at + align_up(nbytes) > len(into):
                raise StorageError("slot too small", expected=at + align_up(nbytes), got=len(into))
            done = 0
            while done < nbytes:
                left = nbytes - done
                want = min(REQUEST_BYTES, align_up(left))
                begin = at + done
                got = self._request(file, offset + done, into[begin : begin + want])
                requests += 1
                total += got
                if got < want and got < left:
                    got -= got % ALIGN  # a direct read can only go on from an aligned place
                    if not got:
                        self._short(file, offset + done, min(want, left))
                done += got
        with self._lock:
            self._bytes += total
            self._requests += requests
        return total

    def read_small(
        self, reads: Sequence[FileRange], into: memoryview, in_flight: int
    ) -> int | None:
        """The same of small reads, ``in_flight`` at a time, each a single request, without the
        interpreter. None where nothing can, or one failed: ``read`` says why."""
        room = len(into)
        if self._together is None or self.mode != "direct" or not reads:
            return None
        if any(r.nbytes > REQUEST_BYTES or r.at + align_up(r.nbytes) > room for r in reads):
            return None
        start = ctypes.addressof(ctypes.c_char.from_buffer(into))
        requests = [
            (self._descriptors[file], offset, nbytes, align_up(nbytes), start + at)
            for file, offset, nbytes, at in reads
        ]
        if (total := self._together(requests, in_flight)) < 0:
            return None
        with self._lock:
            self._bytes += total
            self._requests += len(requests)
        return total

    def check_unchanged(self) -> None:
        """Raise StorageError, naming the file, unless every file is what it was when opened: the
        same one under its path, of the same size, not written to. Two stats per file."""
        for path, descriptor, mark in zip(self.files, self._descriptors, self._marks, strict=True):
            if difference := _difference(path, descriptor, mark):
                raise StorageError(
                    f"{path} {difference} while it was in use",
                    hint="leave the checkpoint alone while a job runs; then start again: "
                    "lines written before stay",
                )

    def close(self) -> None:
        """Give the descriptors back. Idempotent; no read may be under way."""
        for descriptor in (*self._descriptors, *self._retired):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptors = [-1] * len(self._descriptors)
        self._retired = []

    def __enter__(self) -> DiskReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, file: int, offset: int, part: memoryview) -> int:
        direct = self._direct[file]  # first: a fall-back under way changes it last
        descriptor = self._descriptors[file]
        try:
            self._faults("page.read")
            got = os.preadv(descriptor, (part,), offset)
        except OSError as fault:
            if direct and fault.errno == errno.EINVAL:
                self._fall_back(file, f"a direct read at offset {offset} was refused")
                return self._request(file, offset, part)
            raise StorageError(
                f"reading {self.files[file]} at offset {offset} failed",
                expected=f"{len(part)} bytes",
                got=fault.strerror,
            ) from fault
        if not direct:
            os.posix_fadvise(descriptor, offset, len(part), os.POSIX_FADV_DONTNEED)
        self._faults("page.arrived")
        return got

    def _short(self, file: int, offset: int, expected: int) -> None:
        raise StorageError(
            f"{self.files[file]} ends early, reading at offset {offset}",
            expected=f"{expected} bytes",
            got=f"a file of {os.fstat(self._descriptors[file]).st_size} bytes",
            hint="was the file changed or truncated after it was opened?",
        )

    def _open(self, path: Path, direct: bool, refused: set[int], proven: set[int]) -> None:
        try:
            descriptor = _open_buffered(path)
        except OSError as fault:
            raise StorageError(f"cannot open {path}", got=fault.strerror) from fault
        self._descriptors.append(descriptor)
        self._direct.append(False)
        self._marks.append(_Mark.of(os.fstat(descriptor)))
        device = self._marks[-1].device
        if direct and device not in refused:
            candidate = self._open_direct(path, probe=device not in proven)
            if candidate is None:
                refused.add(device)
                return
            proven.add(device)
            self._descriptors[-1] = candidate
            self._direct[-1] = True
            os.close(descriptor)

    def _open_direct(self, path: Path, probe: bool) -> int | None:
        """A descriptor whose reads pass the page cache by, or None and ``reason`` says why."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as fault:
            self.reason = f"the file system of {path.name} refuses O_DIRECT ({fault.strerror})"
            return None
        fault_found = _probe(descriptor, path) if probe else ""
        if fault_found:
            self.reason = fault_found
            os.close(descriptor)
            return None
        return descriptor

    def _fall_back(self, file: int, reason: str) -> None:
        with self._lock:
            if self._direct[file]:
                # Another thread may be reading from the old descriptor: keep it open.
                self._retired.append(self._descriptors[file])
                self._descriptors[file] = _open_buffered(self.files[file])
                self._direct[file] = False
                self.reason = f"{reason} ({self.files[file].name})"


class _Mark(NamedTuple):
    """What tells that a file is still the same, and unwritten."""

    device: int
    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Mark:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _difference(path: Path, descriptor: int, mark: _Mark) -> str:
    """What happened to a file since it was opened; "" if nothing did."""
    held = _Mark.of(os.fstat(descriptor))
    if held.size < mark.size:
        return f"was truncated from {mark.size} to {held.size} bytes"
    if held != mark:
        return "was written to"
    try:
        named = _Mark.of(os.stat(path))
    except OSError as fault:
        return f"was removed ({fault.strerror})"
    return "" if named[:2] == mark[:2] else "was replaced by another file"


def _open_buffered(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # No read-ahead: pages are read whole, and what follows belongs to another one.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def _probe(descriptor: int, path: Path) -> str:
    """Read the file's last block directly; "" if that works and really passes the cache by."""
    last = max(os.fstat(descriptor).st_size - 1, 0) // ALIGN * ALIGN
    with mmap.mmap(-1, ALIGN) as block:
        cached = page_cache_bytes(path, last, ALIGN)
        try:
            os.preadv(descriptor, (block,), last)
        except OSError as fault:
            return f"the file system of {path.name} refuses direct reads ({fault.strerror})"
        if cached == 0 and page_cache_bytes(path, last, ALIGN):
            return f"the file system of {path.name} caches direct reads"
    return ""
