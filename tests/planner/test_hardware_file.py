"""Machines as files: our own form, the classic one, and what neither may hold."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from headrace.cli.plain_yaml import load_plain
from headrace.errors import DocumentError, UsageError
from headrace.planner.hardware_file import hardware_document, read_hardware
from headrace.specs.registry import all_known_hardware, known_hardware

CLASSIC = {
    "gpu_memory": 16384,
    "cpu_memory": 65536,
    "gpu_bandwidth": 320,
    "cpu_bandwidth": 100,
    "cpu_to_gpu_bandwidth": 16,
    "gpu_compute": 65,
    "cpu_compute": 1.6,
}
OWN = {
    "name": "mine",
    "roofs": {"cpu_flops": "500e9", "dram": "50GB/s", "disk": 3e9},
    "capacity": {"host": "64GB"},
    "efficiency": {"expert": [[1, 0.1], [64, 1.0]]},
}


def test_every_known_machine_is_read_back_as_it_is():
    for known in all_known_hardware().values():
        written = json.loads(json.dumps(hardware_document(known.hardware)))
        assert read_hardware(written, "file") == known.hardware


def test_our_own_form_takes_sizes_and_rates_as_people_write_them():
    machine = read_hardware(OWN, "file")
    assert machine.roofs == {"cpu_flops": 500e9, "dram": 50e9, "disk": 3e9, "host": 1.0}
    assert machine.capacity == {"host": 64_000_000_000}
    assert machine.efficiency_of("expert", 64) == 1.0
    assert machine.lane_rate == math.inf
    assert not machine.has_device


def test_like_begins_with_a_known_machine():
    machine = read_hardware({"like": "t4", "roofs": {"h2d": 6e9}, "name": "slow link"}, "file")
    known = known_hardware("t4").hardware
    assert machine.roofs == {**known.roofs, "h2d": 6e9}
    assert machine.capacity == known.capacity
    assert not machine.measured
    with pytest.raises(UsageError, match="unknown machine"):
        read_hardware({"like": "abacus"}, "file")


def test_devices_are_a_whole_number_and_rates_those_of_all_together():
    machine = read_hardware({"like": "t4x2"}, "file")
    assert machine.devices == 2
    assert machine.roofs == known_hardware("t4x2").hardware.roofs
    for wrong in (0, 1.5, "many", 65):
        with pytest.raises(DocumentError, match="devices"):
            read_hardware({"like": "t4", "devices": wrong}, "file")


def test_classic_profiles_are_in_thousands():
    content = {"hardware": CLASSIC, "models": {"m": {}}, "policies": {"p": {"batch_size": 36}}}
    machine = read_hardware(content, "file")
    assert machine.roofs["gpu_flops"] == 65e12
    assert machine.roofs["h2d"] == machine.roofs["d2h"] == 16e9
    assert machine.roofs["dram"] == 100e9
    assert machine.capacity == {"host": 65_536_000_000, "device": 16_384_000_000}


def test_one_of_several_classic_profiles_is_named():
    content = {"hardware": {"a": CLASSIC, "b": {**CLASSIC, "gpu_compute": 121}}}
    assert read_hardware(content, "file", "b").roofs["gpu_flops"] == 121e12
    with pytest.raises(DocumentError, match=r"several machines.*a, b.*file#a"):
        read_hardware(content, "file")
    with pytest.raises(DocumentError, match="no machine 'c'"):
        read_hardware(content, "file", "c")
    assert read_hardware({"hardware": {"a": CLASSIC}}, "file").name == "a"


@pytest.mark.parametrize(
    "change",
    [
        {"roofs": {"cpu_flops": 1e9}},
        {"roofs": {**OWN["roofs"], "gpu_flops": 1e12}},
        {"roofs": {**OWN["roofs"], "dram": 0}},
        {"roofs": {**OWN["roofs"], "dram": -1}},
        {"roofs": {**OWN["roofs"], "dram": float("inf")}},
        {"roofs": {**OWN["roofs"], "dram": float("nan")}},
        {"roofs": {**OWN["roofs"], "dram": True}},
        {"roofs": {**OWN["roofs"], "warp": 1e9}},
        {"roofs": {**OWN["roofs"], "dram": "fast"}},
        {"roofs": []},
        {"capacity": {"host": "much"}},
        {"capacity": {"host": 1e30}},
        {"efficiency": {"expert": [[1, 2.0]]}},
        {"efficiency": {"expert": [[4, 0.5], [1, 0.5]]}},
        {"efficiency": {"expert": [[1, 0.5]] * 65}},
        {"efficiency": {"expert": [1, 2]}},
        {"row_seconds": -1},
        {"measured": "yes"},
        {"name": "x" * 999},
        {"colour": "red"},
    ],
)
def test_what_no_machine_can_be_is_refused(change):
    with pytest.raises(DocumentError):
        read_hardware({**OWN, **change}, "file")


@pytest.mark.parametrize(
    "hardware",
    [
        {**CLASSIC, "gpu_memory": -1},
        {**CLASSIC, "gpu_memory": "16GB"},
        {**CLASSIC, "gpus": 2},
        {k: v for k, v in CLASSIC.items() if k != "cpu_compute"},
        {},
        [],
    ],
)
def test_a_classic_profile_at_fault_is_refused(hardware):
    with pytest.raises(DocumentError):
        read_hardware({"hardware": hardware}, "file")
    with pytest.raises(DocumentError):
        read_hardware({"hardware": CLASSIC}, "file", "other")


def test_the_examples_of_the_documentation_are_machines():
    page = (Path(__file__).resolve().parents[2] / "docs" / "planning.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    own, classic = (load_plain(b) for b in blocks if b.startswith(("like", "hardware")))
    assert read_hardware(own, "page").efficiency_of("expert", 16) == pytest.approx(0.33)
    assert read_hardware(own, "page").lane_rate == 1e9
    assert read_hardware(classic, "page").capacity["device"] == 15_000_000_000
