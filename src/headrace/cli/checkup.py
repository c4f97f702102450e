"""What ``doctor`` looks at: limits of this machine that cost speed or stop a run.

Linux only, from /proc and /sys. ``root`` exists so that tests can show another machine.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.memory.disk import REQUEST_BYTES, DiskReader
from headrace.memory.disk_rate import measure_rate
from headrace.memory.tiers import DefaultBudget, default_budget
from headrace.specs.units import format_bytes

_ROOT = Path("/")
_LEAST_FREE = 2_000_000_000
_LEAST_FILES = 1024
_SLOW_DISK = 300e6
_REQUESTS = 6  # of the file that is read
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")  # VGA, 3D and other display controllers
_WIDE = ("avx512f", "avx2", "neon")


class Verdict(StrEnum):
    """How a finding should be read."""

    FINE = "fine"
    NOTE = "note"  # nothing to mend, but it decides what to expect
    SLOW = "slow"  # costs speed
    BAD = "bad"  # stops runs


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and what to do about it (empty when fine)."""

    name: str
    found: str
    verdict: Verdict = Verdict.FINE
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What is examined: the machine below ``root``, and the disk that holds ``folder``.

    ``request_bytes`` is the size of the reads that are timed with ``clock``: the largest that runs
    make, in which they read whatever is larger.
    """

    folder: Path
    clock: Callable[[], float]
    root: Path = _ROOT
    request_bytes: int = REQUEST_BYTES


def examine(patient: Patient) -> Iterator[Finding]:
    """Every finding, cheap ones first; the disk is read for about a second."""
    yield from (memory(patient), cgroup(patient), locked_memory(), open_files())
    yield from (cores(patient), numa(patient), huge_pages(patient), instructions())
    yield from links(patient)
    yield disk(patient)


def memory(patient: Patient) -> Finding:
    """Memory that can be had now, and the budget that follows."""
    free = _budget(patient)
    said = (
        f"{format_bytes(free.available_bytes)} available, "
        f"budget without --memory {format_bytes(free.budget_bytes)}"
    )
    if free.budget_bytes >= _LEAST_FREE:
        return Finding("memory", said)
    return Finding("memory", said, Verdict.SLOW, "end other programs: less memory, more reading")


def cgroup(patient: Patient) -> Finding:
    """Whether a container or service limits this process below the machine."""
    free = _budget(patient)
    if free.cgroup_bytes is None:
        return Finding("cgroup", "no memory limit")
    said = f"{format_bytes(free.cgroup_bytes)} left of the group's memory"
    if free.cgroup_bytes >= free.available_bytes:
        return Finding("cgroup", said)
    return Finding("cgroup", said, Verdict.NOTE, "raise the container's memory limit to use more")


def locked_memory() -> Finding:
    """How much memory may be pinned: what a link to an accelerator copies from."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "unlimited")
    said = f"at most {format_bytes(soft)} may be pinned"
    return Finding(
        "locked memory",
        said,
        Verdict.NOTE,
        "with an accelerator: `ulimit -l unlimited`, or memlock in limits.conf",
    )


def open_files() -> Finding:
    """Shards are held open, so their number is bounded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} open files"
    if soft >= _LEAST_FILES:
        return Finding("open files", said)
    return Finding("open files", said, Verdict.BAD, f"`ulimit -n {min(hard, 4096)}`")


def cores(patient: Patient) -> Finding:
    """Cores this process may use, of those that there are."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if usable == present:
        return Finding("cores", f"{usable}")
    said = f"{usable} of {present}"
    return Finding("cores", said, Verdict.NOTE, "taskset or a container's cpuset keeps the others")


def numa(patient: Patient) -> Finding:
    """More than one memory node: the far one is slower."""
    nodes = sorted((patient.root / "sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) < 2:
        return Finding("NUMA", "one memory node")
    return Finding(
        "NUMA",
        f"{len(nodes)} memory nodes",
        Verdict.SLOW,
        "bind a run to one node: `numactl --cpunodebind=0 --membind=0 headrace ...`",
    )


def huge_pages(patient: Patient) -> Finding:
    """Transparent huge pages: fewer misses of the address translation cache."""
    text = _text(patient.root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = text.partition("[")[2].partition("]")[0] or "unknown"
    if chosen in ("always", "madvise"):
        return Finding("huge pages", chosen)
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    return Finding("huge pages", chosen, Verdict.SLOW, f"as root: `echo madvise > {path}`")


def instructions() -> Finding:
    """Whose arithmetic runs, and on which instruction sets."""
    from headrace.kernels.native import available, cpu_features

    if not available():
        return Finding(
            "instruction sets",
            "native kernels were not built: arithmetic runs on torch",
            Verdict.SLOW,
            "install a C++ compiler and install Headrace again",
        )
    features = cpu_features()
    said = ", ".join(sorted(features)) or "none beyond the baseline"
    if features.intersection(_WIDE):
        return Finding("instruction sets", said)
    return Finding("instruction sets", said, Verdict.SLOW, "a processor with AVX2 or NEON")


def links(patient: Patient) -> Iterator[Finding]:
    """Accelerators and the width and speed of the link to each."""
    found = False
    for device in sorted((patient.root / "sys/bus/pci/devices").glob("*")):
        if not _text(device / "class").startswith(_DISPLAY_CLASSES):
            continue
        now = _link(device, "current")
        if now is None:  # an emulated screen
            continue
        found, most = True, _link(device, "max")
        name, said = f"link {device.name}", f"{now[0]} lanes at {now[1]} GT/s"
        if most is None or now >= most:
            yield Finding(name, said)
            continue
        wanted = f"{most[0]} lanes at {most[1]} GT/s"
        yield Finding(
            name,
            f"{said}, of {wanted}",
            Verdict.SLOW,
            "idle devices lower their speed; fewer lanes: another slot, or a seated card",
        )
    if not found:
        yield Finding("accelerator", "none: the processor computes", Verdict.NOTE)


def disk(patient: Patient) -> Finding:
    """Direct reads of a file in the folder, in requests like a run's, one and two in flight."""
    try:
        with tempfile.NamedTemporaryFile(dir=patient.folder, prefix=".headrace-doctor-") as file:
            for _ in range(_REQUESTS):
                file.write(os.urandom(REQUEST_BYTES))
            file.flush()
            os.fsync(file.fileno())
            return _timed(patient, Path(file.name))
    except (OSError, HeadraceError) as error:
        said = f"cannot be measured in {patient.folder}: {error}"
        return Finding("disk", said, Verdict.NOTE, "--disk FOLDER: one that you may write to")


def _timed(patient: Patient, file: Path) -> Finding:
    reader = DiskReader([file])
    try:
        size = file.stat().st_size
        rates = {
            depth: measure_rate(reader, size, depth, patient.clock, patient.request_bytes)
            for depth in (1, 2)
        }
        best = max(rate.bytes_per_second for rate in rates.values())
        each = ", ".join(
            f"{format_bytes(rate.bytes_per_second)}/s with {depth} in flight"
            for depth, rate in rates.items()
        )
        said = f"{each}, reads of {format_bytes(patient.request_bytes)}"
        if reader.mode != "direct":
            return Finding(
                "disk",
                f"{said}; through the page cache: {reader.reason}",
                Verdict.SLOW,
                "keep the checkpoint on a file system that allows direct reads (ext4, xfs)",
            )
        if best < _SLOW_DISK:
            return Finding("disk", said, Verdict.SLOW, "keep the checkpoint on an NVMe disk")
        return Finding("disk", said)
    finally:
        reader.close()


def _budget(patient: Patient) -> DefaultBudget:
    return default_budget(root=patient.root)


def _link(device: Path, which: str) -> tuple[int, float] | None:
    """(lanes, GT/s), or None where the device does not say."""
    width, speed = (_text(device / f"{which}_link_{part}") for part in ("width", "speed"))
    try:
        lanes, rate = int(width), float(speed.split()[0])
    except (ValueError, IndexError):
        return None
    return (lanes, rate) if 0 < lanes < 64 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
