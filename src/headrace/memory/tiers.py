"""How much memory there is: of the machine, of this process' cgroup, taken by this process.

Linux only, from /proc and /sys. ``root`` exists so that tests can show another machine.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import StorageError

_ROOT = Path("/")
_SHARE = 0.9
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
_MINCORE_BYTES = 1 << 30


@dataclass(frozen=True)
class DefaultBudget:
    """The budget taken when none is given, and what it was made from (bytes)."""

    budget_bytes: int
    available_bytes: int
    cgroup_bytes: int | None
    baseline_bytes: int


def default_budget(baseline_bytes: int | None = None, root: Path = _ROOT) -> DefaultBudget:
    """0.9 x (min(available memory, cgroup headroom) - baseline), at least 0.

    ``baseline_bytes`` is what interpreter, torch and tokenizer take once loaded; by default
    what this process takes now. What it already takes is missing from both terms of the
    minimum, so it is added back before the baseline is subtracted.
    """
    available, cgroup, now = available_bytes(root), cgroup_headroom(root), rss_bytes(root)
    baseline = now if baseline_bytes is None else baseline_bytes
    free = free_bytes(root) + now - baseline
    return DefaultBudget(max(0, int(_SHARE * free)), available, cgroup, baseline)


def available_bytes(root: Path = _ROOT) -> int:
    """Memory that can be had without swapping (MemAvailable)."""
    return _kib_field(root / "proc/meminfo", "MemAvailable")


def free_bytes(root: Path = _ROOT) -> int:
    """Memory that this process may still take: what is available, or its cgroup's headroom if
    that is less."""
    available, cgroup = available_bytes(root), cgroup_headroom(root)
    return available if cgroup is None else min(available, cgroup)


def rss_bytes(root: Path = _ROOT) -> int:
    """Resident memory of this process now."""
    return _kib_field(root / "proc/self/status", "VmRSS")


def peak_rss_bytes(root: Path = _ROOT) -> int:
    """Most resident memory this process ever had."""
    return _kib_field(root / "proc/self/status", "VmHWM")


def cgroup_headroom(root: Path = _ROOT) -> int | None:
    """Bytes this process may still take before its cgroup, or one above it, is at its limit.

    Cached file pages that the kernel can drop count as free. None when nothing limits it.
    """
    levels = [level for folder, v2 in memory_cgroups(root) for level in _levels(folder, v2)]
    return min(levels, default=None)


def page_cache_bytes(path: Path, offset: int = 0, nbytes: int | None = None) -> int:
    """Bytes of a file (or of the aligned range given) that are in the page cache, by mincore.

    The kernel tells the truth only to who may write the file; to others it says "all".
    Raises StorageError.
    """
    page = mmap.PAGESIZE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            end = size if nbytes is None else min(size, offset + nbytes)
            pages = 0
            for start in range(offset, end, _MINCORE_BYTES):
                pages += _resident_pages(descriptor, start, min(_MINCORE_BYTES, end - start))
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise StorageError(f"cannot ask for cached pages of {path}", got=fault.strerror) from fault
    return min(pages * page, max(0, end - offset))


def _resident_pages(descriptor: int, offset: int, nbytes: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, word, number = ctypes.c_size_t, ctypes.c_long, ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, size, number, number, number, word]
    libc.munmap.argtypes = [ctypes.c_void_p, size]
    libc.mincore.argtypes = [ctypes.c_void_p, size, ctypes.c_char_p]
    address = libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        states = ctypes.create_string_buffer(-(-nbytes // mmap.PAGESIZE))
        if libc.mincore(address, nbytes, states):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sum(byte & 1 for byte in states.raw)
    finally:
        libc.munmap(address, nbytes)


def memory_cgroups(root: Path = _ROOT) -> list[tuple[list[Path], bool]]:
    """Per hierarchy that may limit memory: folders from this process' group up, and if it is v2."""
    groups: list[tuple[list[Path], bool]] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        v2 = controllers == ""
        if v2 or "memory" in controllers.split(","):
            mount = _mount(root, v2)
            if mount is not None:
                groups.append((_upwards(mount, path), v2))
    return groups


def _mount(root: Path, v2: bool) -> Path | None:
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = ([*after.split(" ", 2), "", ""])[:3]
        if kind == ("cgroup2" if v2 else "cgroup") and (v2 or "memory" in options.split(",")):
            return root / before.split(" ")[4].lstrip("/")
    return None


def _upwards(mount: Path, path: str) -> list[Path]:
    """The group's folder and all above it. In a container the path may name a place outside
    the mount; then the mount itself is the group."""
    folder = mount / path.strip("/")
    if not folder.is_dir() or ".." in folder.parts:
        return [mount]
    depth = len(folder.parts) - len(mount.parts)
    return [folder, *list(folder.parents)[:depth]]


def _levels(folders: list[Path], v2: bool) -> list[int]:
    names = ("memory.max", "memory.current", "inactive_file")
    if not v2:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found = []
    for folder in folders:
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is not None and used is not None and limit < _UNLIMITED:
            droppable = _stat_field(folder / "memory.stat", names[2])
            found.append(max(0, limit - max(0, used - droppable)))
    return found


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _stat_field(path: Path, name: str) -> int:
    fields = (line.split() for line in _lines(path))
    return next((int(f[1]) for f in fields if len(f) == 2 and f[0] == name), 0)


def _kib_field(path: Path, name: str) -> int:
    for line in _lines(path):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise StorageError(f"{name} is not in {path}", hint="Headrace needs Linux with /proc")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
