"""A bound on memory, page cache included, for one process and what it starts.

Only a control group does that: a limit on address space counts neither pages read through the
cache nor files that are mapped. In order: a new group inside this process' own (v1 or v2), where
that may be made; a scope of systemd; else a refusal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from headrace.errors import UsageError
from headrace.memory.tiers import memory_cgroups
from headrace.specs.units import format_bytes


@dataclass(frozen=True)
class Bound:
    """How a command is put under a limit, in a reader's words; ``group`` is its folder if the
    limit is a control group of ours. Without ``prefix`` there is no limit."""

    said: str
    prefix: tuple[str, ...] = ()
    group: Path | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """``command`` under the limit."""
        return [*self.prefix, *command]

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that was charged to the group, page cache included."""
        return self._number("memory.max_usage_in_bytes", "memory.peak")

    @property
    def killed(self) -> bool:
        """Whether the kernel ended a process for want of memory."""
        if self.group is None:
            return False
        for name in ("memory.oom_control", "memory.events"):
            with suppress(OSError):
                for line in (self.group / name).read_text().splitlines():
                    if line.startswith("oom_kill ") and int(line.split()[1]):
                        return True
        return False

    def _number(self, *names: str) -> int | None:
        for name in names:
            if self.group is not None:
                with suppress(OSError, ValueError):
                    return int((self.group / name).read_text())
        return None


UNBOUNDED = Bound("not bounded")


@contextmanager
def bounded(size: int | None) -> Iterator[Bound]:
    """A fresh limit of ``size`` bytes; None for none. Raises UsageError where none can be set."""
    if size is None:
        yield UNBOUNDED
        return
    bound = _group(size) or _scope(size)
    if bound is None:
        raise UsageError(
            "--memory: page cache and process can only be bounded together by a control group",
            expected="the right to make one below this process' own, or systemd-run",
            got="neither",
            hint="run as root, in a login session of systemd, or the whole command in a container "
            "with --memory (and leave --memory away here)",
        )
    try:
        yield bound
    finally:
        if bound.group is not None:
            _remove(bound.group)


def drop_cached(paths: Sequence[str]) -> None:
    """Forget what the page cache holds of files and folders, so that nobody starts with pages
    that are charged to somebody else. Pages that a process has mapped stay."""
    for file in _files(paths):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_cached(paths: Sequence[str]) -> None:
    """Read files and folders once: who maps them then waits for no disk."""
    block = bytearray(16 << 20)
    for file in _files(paths):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(block):
                pass


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _group(size: int) -> Bound | None:
    for folders, v2 in memory_cgroups():
        group = folders[0] / f"headrace-bench-{os.getpid()}"
        limit, swap = (
            ("memory.max", "memory.swap.max")
            if v2
            else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        )
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(size))
            with suppress(OSError):  # no swap, no such file
                (group / swap).write_text("0" if v2 else str(size))
        except OSError:
            _remove(group)
            continue
        # $0 is the list of the group's processes: the shell joins it, then becomes the command.
        join = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
        version = 2 if v2 else 1
        said = f"control group v{version}, {limit} = {format_bytes(size)}, page cache included"
        return Bound(said, join, group)
    return None


def _scope(size: int) -> Bound | None:
    run = shutil.which("systemd-run")
    if run is None:
        return None
    for user in ((), ("--user",)):
        prefix = (
            *(run, *user, "--scope", "--quiet"),
            *("-p", f"MemoryMax={size}", "-p", "MemorySwapMax=0", "--"),
        )
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=20)
            said = f"systemd scope, MemoryMax = {format_bytes(size)}, page cache included"
            return Bound(said, prefix)
    return None


def _remove(group: Path) -> None:
    """Remove an empty group; a process that is just ending keeps it busy for a moment."""
    for _ in range(50):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            sleep(0.02)
        else:
            return
