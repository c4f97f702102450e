"""``headrace doctor``: every finding of a machine that tests describe."""

from __future__ import annotations

import itertools
import json
import resource
from pathlib import Path

import pytest

from headrace.cli import checkup
from headrace.cli.checkup import Finding, Patient, Verdict, examine
from headrace.cli.main import run
from headrace.memory.disk import REQUEST_BYTES
from headrace.specs.units import format_bytes

KIB_PER_GB = 1_000_000_000 // 1024


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A machine with 10 GB free, described below ``tmp_path``."""
    machine = Patient(tmp_path, itertools.count(step=0.1).__next__, tmp_path, 1 << 20)
    free(machine, 10)
    put(machine, "proc/self/status", f"VmHWM: {KIB_PER_GB} kB\nVmRSS: {KIB_PER_GB // 5} kB")
    return machine


def put(patient: Patient, path: str, text: str) -> None:
    file = patient.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def free(patient: Patient, gigabytes: int) -> None:
    put(patient, "proc/meminfo", f"MemAvailable: {gigabytes * KIB_PER_GB} kB\n")


def device(patient: Patient, **facts: str) -> None:
    for name, text in facts.items():
        put(patient, f"sys/bus/pci/devices/0000:01:00.0/{name}", text)


def test_little_memory_is_slow_and_says_what_to_do(patient: Patient) -> None:
    assert checkup.memory(patient).verdict is Verdict.FINE
    free(patient, 1)
    found = checkup.memory(patient)
    assert found.verdict is Verdict.SLOW
    assert found.remedy


def test_a_limit_of_the_group_below_the_machine_is_noted(patient: Patient) -> None:
    assert checkup.cgroup(patient).found == "no memory limit"
    put(patient, "proc/self/cgroup", "0::/job\n")
    put(patient, "proc/self/mountinfo", "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 none rw\n")
    put(patient, "sys/fs/cgroup/job/memory.max", "3000000000")
    put(patient, "sys/fs/cgroup/job/memory.current", "1000000000")
    found = checkup.cgroup(patient)
    assert (found.verdict, found.found) == (Verdict.NOTE, "2 GB left of the group's memory")


def test_pinned_memory_and_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 << 10, 256))
    assert "65.5 KB" in checkup.locked_memory().found
    assert checkup.open_files().verdict is Verdict.FINE
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 1 << 20))
    assert checkup.locked_memory().found == "unlimited"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    assert checkup.open_files() == Finding(
        "open files", "256 open files", Verdict.BAD, "`ulimit -n 512`"
    )


def test_memory_nodes_and_huge_pages(patient: Patient) -> None:
    assert checkup.numa(patient).verdict is Verdict.FINE
    for node in ("node0", "node1"):
        put(patient, f"sys/devices/system/node/{node}/cpulist", "0")
    assert "numactl" in checkup.numa(patient).remedy
    assert checkup.huge_pages(patient).found == "unknown"
    put(patient, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    assert checkup.huge_pages(patient) == Finding("huge pages", "madvise")


def test_fewer_cores_than_there_are(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(checkup.os, "sched_getaffinity", lambda _: {0, 1})
    assert checkup.cores(patient).found == "2 of 64"


def test_a_narrow_link_is_slow_and_other_devices_are_passed_over(patient: Patient) -> None:
    assert [f.name for f in checkup.links(patient)] == ["accelerator"]
    device(patient, **{"class": "0x030200"}, current_link_width="8", current_link_speed="8.0 GT/s")
    device(patient, max_link_width="16", max_link_speed="16.0 GT/s PCIe")
    (found,) = checkup.links(patient)
    assert found.found == "8 lanes at 8.0 GT/s, of 16 lanes at 16.0 GT/s"
    assert found.verdict is Verdict.SLOW
    device(patient, current_link_width="16", current_link_speed="16.0 GT/s")
    assert [f.verdict for f in checkup.links(patient)] == [Verdict.FINE]
    device(patient, current_link_speed="Unknown")
    assert [f.name for f in checkup.links(patient)] == ["accelerator"]
    device(patient, **{"class": "0x020000"})
    assert [f.name for f in checkup.links(patient)] == ["accelerator"]


def test_without_native_kernels_arithmetic_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.kernels import native

    monkeypatch.setattr(native, "available", lambda: False)
    assert "compiler" in checkup.instructions().remedy
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"sse2"}))
    assert checkup.instructions().verdict is Verdict.SLOW
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    assert checkup.instructions() == Finding("instruction sets", "avx2, fma")


def test_the_disk_is_read_and_what_was_written_is_gone(patient: Patient) -> None:
    found = checkup.disk(patient)
    assert "with 2 in flight" in found.found
    assert not list(patient.folder.glob(".headrace-doctor-*"))


def test_the_disk_is_read_as_runs_read_it(patient: Patient) -> None:
    asked = Patient(patient.folder, patient.clock, patient.root)
    assert asked.request_bytes == REQUEST_BYTES
    assert f"reads of {format_bytes(REQUEST_BYTES)}" in checkup.disk(asked).found


def test_a_folder_that_cannot_be_written_is_noted(patient: Patient) -> None:
    gone = Patient(patient.folder / "none", patient.clock, patient.root)
    assert "cannot be measured" in checkup.disk(gone).found


def test_a_slow_disk_is_said(patient: Patient) -> None:
    crawling = Patient(patient.folder, itertools.count(step=10).__next__, patient.root, 1 << 20)
    assert checkup.disk(crawling).verdict is Verdict.SLOW


def test_every_fault_has_a_remedy(patient: Patient) -> None:
    for finding in examine(patient):
        assert finding.remedy or finding.verdict in (Verdict.FINE, Verdict.NOTE)


def test_command_as_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--disk", str(tmp_path)]) in (0, 1)
    assert "instruction sets" in capsys.readouterr().out
    run(["doctor", "--disk", str(tmp_path), "--json"])
    names = {finding["name"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert {"memory", "cgroup", "locked memory", "NUMA", "disk"} <= names
    assert run(["doctor", "--disk", str(tmp_path / "none")]) == 2
