"""``bench schedules``: Python overhead of every schedule."""

from __future__ import annotations

import json
from time import perf_counter

from headrace.cli.main import run
from headrace.cli.overhead import measure, policy_for
from headrace.specs.model import ModelSpec
from headrace.specs.policy import SCHEDULES
from headrace.specs.registry import known_hardware

SMALL = ModelSpec("mixtral", 2, 64, 4, 2, 16, 96, 128, experts=4, top_k=2)


def test_every_schedule_is_measured():
    hardware = known_hardware("cpu-2core").hardware
    for schedule in SCHEDULES:
        found = measure("small", SMALL, schedule, perf_counter, 2, hardware).to_dict()
        assert found["tasks"] > 20
        assert 0 < found["seconds_per_task"] < 0.01
        assert found["bound_seconds"] > 0


def test_resident_policy_streams_nothing():
    assert policy_for(SMALL, "resident").ring_slots == 0
    assert policy_for(SMALL, "stream").ring_slots > 0


def test_command_prints_tables_and_json(capsys):
    arguments = ["bench", "schedules", "--shape", "smollm2-135m", "--sweeps", "1"]
    assert run(arguments) == 0
    assert "one_by_one" in capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["schedules"]
    assert [row["schedule"] for row in rows] == list(SCHEDULES)


def test_unknown_shape_is_refused(capsys):
    assert run(["bench", "schedules", "--shape", "nothing"]) == 2
