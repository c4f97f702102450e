from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import StorageError
from headrace.memory import tiers
from headrace.memory.tiers import (
    available_bytes,
    cgroup_headroom,
    default_budget,
    page_cache_bytes,
    peak_rss_bytes,
    rss_bytes,
)

GB = 1_000_000_000
KIB_PER_GB = GB // 1024


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Another machine's root: 10 GB available, this process takes 0.3 GB, no cgroups."""
    put(tmp_path / "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:  {10 * KIB_PER_GB} kB\n")
    put(tmp_path / "proc/self/status", f"VmHWM: {KIB_PER_GB} kB\nVmRSS: {3 * KIB_PER_GB // 10} kB")
    return tmp_path


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def v2(root: Path, group: str) -> None:
    put(root / "proc/self/cgroup", f"0::{group}\n")
    put(root / "proc/self/mountinfo", "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")


def limit_v2(folder: Path, limit: object, current: int, inactive_file: int = 0) -> None:
    put(folder / "memory.max", limit)
    put(folder / "memory.current", current)
    put(folder / "memory.stat", f"anon 5\ninactive_file {inactive_file}\n")


def test_without_cgroups_nothing_limits(machine: Path) -> None:
    assert cgroup_headroom(machine) is None
    assert default_budget(root=machine).cgroup_bytes is None


def test_v2_the_tightest_level_counts_and_droppable_cache_is_free(machine: Path) -> None:
    v2(machine, "/app/job")
    cgroups = machine / "sys/fs/cgroup"
    limit_v2(cgroups / "app", 4 * GB, 3 * GB, inactive_file=GB)
    limit_v2(cgroups / "app/job", 3 * GB, GB // 2)
    assert cgroup_headroom(machine) == 2 * GB
    limit_v2(cgroups / "app/job", "max", GB // 2)
    limit_v2(cgroups / "app", 4 * GB, 5 * GB)
    assert cgroup_headroom(machine) == 0


def test_v1_is_read_through_its_own_mount_and_no_limit_is_none(machine: Path) -> None:
    put(machine / "proc/self/cgroup", "9:cpu:/\n4:memory:/box\n0::/\n")
    put(
        machine / "proc/self/mountinfo",
        "31 23 0:1 / /cg/cpu rw - cgroup cgroup rw,cpu\n"
        "35 31 0:2 / /cg/memory rw - cgroup cgroup rw,memory\n",
    )
    box = machine / "cg/memory/box"
    put(box / "memory.limit_in_bytes", 2**63 - 4096)
    put(box / "memory.usage_in_bytes", GB)
    assert cgroup_headroom(machine) is None
    put(box / "memory.limit_in_bytes", 3 * GB)
    put(box / "memory.stat", "total_inactive_file 500000000\n")
    assert cgroup_headroom(machine) == 2 * GB + 500_000_000


def test_in_a_container_whose_group_path_is_hidden_the_mount_is_the_group(machine: Path) -> None:
    v2(machine, "/docker/abc")
    limit_v2(machine / "sys/fs/cgroup", 2 * GB, GB)
    assert cgroup_headroom(machine) == GB


def test_the_default_budget_is_nine_tenths_of_what_the_baseline_leaves(machine: Path) -> None:
    budget = default_budget(root=machine)
    assert budget.baseline_bytes == rss_bytes(machine)
    assert budget.budget_bytes == pytest.approx(9 * GB, rel=1e-3)
    budget = default_budget(baseline_bytes=GB, root=machine)
    assert budget.budget_bytes == pytest.approx(0.9 * (10 + 0.3 - 1) * GB, rel=1e-3)
    v2(machine, "/")
    limit_v2(machine / "sys/fs/cgroup", 2 * GB, GB)
    budget = default_budget(root=machine)
    assert (budget.cgroup_bytes, budget.budget_bytes) == (GB, int(0.9 * GB))
    assert default_budget(baseline_bytes=99 * GB, root=machine).budget_bytes == 0


def test_this_machine_answers() -> None:
    assert available_bytes() > 0
    assert 0 < rss_bytes() <= peak_rss_bytes()
    assert (cgroup_headroom() or 0) >= 0


def test_a_machine_without_proc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="MemAvailable"):
        available_bytes(tmp_path)


def test_mincore_counts_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(50_000))
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    if page_cache_bytes(file) not in (0, 50_000):
        pytest.skip("a file system with its own idea of caching")
    file.read_bytes()
    monkeypatch.setattr(tiers, "_MINCORE_BYTES", 16384)
    assert page_cache_bytes(file) == 50_000
    assert page_cache_bytes(file, 4096, 8192) == 8192
    assert page_cache_bytes(file, 49_152, 4096) == 50_000 - 49_152


def test_mincore_of_nothing_and_of_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert page_cache_bytes(tmp_path / "empty") == 0
    with pytest.raises(StorageError, match="cached pages"):
        page_cache_bytes(tmp_path / "absent")
