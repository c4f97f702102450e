"""An append-only file that one process holds, whose lines count only once they are durable."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace.errors import JobError, LockedError, StorageError
from headrace.specs.faults import Faults, no_faults

CHUNK = 1 << 16
"""Bytes per write call."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DurableLog:
    """A file of lines, locked with flock until :meth:`close`.

    ``size`` is the length that is known to be durable; a torn end beyond it is cut before the
    next append, so a failed append leaves no trace.
    """

    def __init__(self, path: Path, faults: Faults = no_faults) -> None:
        """Open (or create) and lock. Raises LockedError when another process holds it, JobError
        when it cannot be opened."""
        self.path = path
        self._faults = faults
        self.created = not path.exists()
        self._fd = _open_locked(path)
        self.size = os.fstat(self._fd).st_size
        if self.created:
            sync_folder(path.parent)
        temporary_of(path).unlink(missing_ok=True)  # of a rewriting that was killed

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line) of every line as found, a torn last one without its newline."""
        offset = 0
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                yield offset, line
                offset += len(line)

    def append(self, data: bytes) -> None:
        """Write ``data`` at the end and make it durable. Raises StorageError, nothing added."""
        try:
            self._faults("output.write")
            if os.fstat(self._fd).st_size != self.size:
                os.ftruncate(self._fd, self.size)
            self._write(data)
            self._faults("output.fsync")
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next append does it
                os.ftruncate(self._fd, self.size)
            raise StorageError(
                f"writing {self.path}: {error.strerror or error}", hint=_remedy(error)
            ) from error
        self._faults("output.durable")
        self.size += len(data)

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes, durably. Raises StorageError."""
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as error:
            raise StorageError(f"cutting {self.path}: {error.strerror or error}") from error
        self.size = size

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Replace the content by ``lines``, all or nothing; the lock moves to the new file."""
        temporary = temporary_of(self.path)
        try:
            self._faults("replace.write")
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise StorageError(f"rewriting {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # before the rename: nobody finds it unlocked
            with open(fd, "wb", closefd=False) as file:
                file.writelines(lines)
            replace_durably(fd, temporary, self.path, self._faults)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise StorageError(
                    f"rewriting {self.path}: {error.strerror}", hint=_remedy(error)
                ) from error
            raise
        os.close(self._fd)
        self._fd = fd
        self.size = os.fstat(fd).st_size

    @property
    def unused(self) -> bool:
        """Whether this object created the file and nothing, durable or not, is in it."""
        return self.created and not os.fstat(self._fd).st_size

    def close(self, remove_empty: bool = False) -> None:
        """Release the lock; on request remove an unused file."""
        if remove_empty and self.unused:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        view, at = memoryview(data), self.size
        while view:
            written = os.pwrite(self._fd, view[:CHUNK], at)
            view, at = view[written:], at + written
            self._faults("output.chunk")


def write_durably(path: Path, data: bytes, faults: Faults = no_faults) -> None:
    """Write a small file, all or nothing. Raises StorageError."""
    temporary = temporary_of(path)
    try:
        faults("replace.write")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            replace_durably(file.fileno(), temporary, path, faults)
    except OSError as error:
        message = f"writing {path}: {error.strerror or error}"
        raise StorageError(message, hint=_remedy(error)) from error


def replace_durably(fd: int, temporary: Path, path: Path, faults: Faults) -> None:
    """Make ``temporary``, open as ``fd``, durable and rename it to ``path``."""
    faults("replace.fsync")
    os.fsync(fd)
    faults("replace.rename")
    os.replace(temporary, path)
    faults("replace.done")
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Where what will replace ``path`` is written: a name that only Headrace uses."""
    return path.with_name(path.name + ".headrace.tmp")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remedy(error: OSError) -> str:
    what = "free some space" if error.errno in _NO_ROOM else "look at that disk"
    return f"{what} and start again: finished lines are kept"


def _open_locked(path: Path) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JobError(
                f"output {path}: {error.strerror}", hint="name a file in a folder you may write to"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise LockedError(
                f"another run holds {path}", hint="wait for it, or name another output"
            ) from error
        if _is_same_file(fd, path):
            return fd
        os.close(fd)  # it was replaced between opening and locking


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
