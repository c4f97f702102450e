"""A machine's profile on disk: kept, read, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.profiles import (
    dated,
    keep_profile,
    machine_profile,
    profile_path,
    read_profile,
    this_machine,
)
from headrace.errors import StorageError, UsageError
from headrace.planner.profile import ShapeCurves
from headrace.specs.registry import known_hardware, known_model

STOCK = replace(known_hardware("cpu-2core").hardware, lane_rate=1e9)
CURVES = {"moe": ((1.0, 0.5),)}
MEASURED = replace(STOCK, efficiency=CURVES)
SHAPE = ShapeCurves.of(known_model("olmoe-1b-7b").spec, "f16", True, MEASURED)


def test_several_measurements_make_one_profile_of_medians():
    fast = replace(STOCK, roofs={**STOCK.roofs, "disk": 3e9}, lane_rate=9e9)
    slow = replace(STOCK, roofs={**STOCK.roofs, "disk": 1e9}, lane_rate=2e9)
    middle = replace(STOCK, roofs={**STOCK.roofs, "disk": 2e9}, lane_rate=3e9)
    made = machine_profile([fast, slow, middle], [SHAPE], dated(0.0), beside={"reads": 0.5})
    assert made.hardware.roofs["disk"] == 2e9
    assert made.hardware.lane_rate == 3e9
    assert made.hardware.efficiency == {}
    assert made.made == "1970-01-01T00:00:00+00:00"
    assert made.machine == this_machine()
    assert made.beside == {"reads": 0.5}


def test_it_lives_in_the_users_cache():
    assert profile_path({"XDG_CACHE_HOME": "/x"}) == Path("/x/headrace/profile.json")
    assert profile_path({}) == Path("~/.cache/headrace/profile.json").expanduser()


def test_what_is_kept_is_read(tmp_path):
    path = profile_path({"XDG_CACHE_HOME": str(tmp_path)})
    assert read_profile(path) is None
    made = machine_profile([STOCK], [SHAPE], dated(1e9))
    keep_profile(path, made)
    assert read_profile(path) == made


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', "[" * 100_000])
def test_a_damaged_profile_is_refused(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="damaged") as refusal:
        read_profile(path)
    assert "calibrate" in str(refusal.value.hint)


def test_a_profile_of_an_older_version_is_not_called_damaged(tmp_path):
    path = tmp_path / "profile.json"
    data = machine_profile([STOCK], [SHAPE], dated(1e9)).to_dict()
    path.write_text(json.dumps({**data, "format": data["format"] - 1}))
    with pytest.raises(UsageError, match="older version") as refusal:
        read_profile(path)
    assert "calibrate" in str(refusal.value.hint)


def test_a_profile_of_another_machine_is_refused(tmp_path):
    path = tmp_path / "profile.json"
    made = machine_profile([STOCK], [SHAPE], dated(1e9))
    data = {**made.to_dict(), "machine": {**made.machine, "processor": "another"}}
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="processor differ"):
        read_profile(path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be kept"):
        keep_profile(
            tmp_path / "file" / "headrace" / "profile.json", machine_profile([STOCK], [], "")
        )
