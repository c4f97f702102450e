"""Every program in examples/ runs, and prints what it promises."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCE = str(Path(headrace.__file__).parents[1])


def output_of(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that an example prints, run in this process."""
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_plan_only_prints_a_plan_and_never_imports_torch():
    command = [sys.executable, str(EXAMPLES / "plan_only.py"), "olmoe-1b-7b", "cpu-2core", "4GB"]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "olmoe-1b-7b on cpu-2core, 4GB"
    assert "  budget                 4 GB" in lines
    assert any(line.startswith(("schedule stream", "schedule on_demand")) for line in lines)
    assert any(re.fullmatch(r".+ \(.+ to .+\), .+ read, bound by (disk|cpu)", s) for s in lines)
    assert lines[-1] == "torch imported: False"


def test_generate_answers_every_prompt_in_less_memory_than_the_weights_take(capsys):
    lines = output_of("generate.py", capsys)
    weights, used = re.findall(r"([\d.]+) MB", lines[0])
    assert float(weights) > 1.9 * float(used)
    assert lines[1].startswith("schedule stream") or lines[1].startswith("schedule on_demand")
    assert [line.rpartition(": ")[2] for line in lines[2:5]] == ["8 tokens, length"] * 3
    assert lines[5] == "streamed text is the same: True"


def test_simulate_schedule_draws_both_timelines_on_one_axis(capsys):
    lines = output_of("simulate_schedule.py", capsys)
    rows = [line for line in lines if "|" in line]
    assert [line.split()[0] for line in rows] == ["cpu", "disk0", "disk1", "host"] * 2
    assert {len(line.split("|")[1]) for line in rows} == {72}
    one_by_one, stream = (
        float(re.search(rf"{name}: two sweeps in (\d+) ms", "\n".join(lines))[1])
        for name in ("one_by_one", "stream")
    )
    assert stream < one_by_one


def test_cgopipe_cuts_the_idle_time_of_what_bounds_by_more_than_half(capsys):
    """At the balance point of a T4, against one_by_one and every published baseline."""
    lines = output_of("compare_schedules.py", capsys)
    assert "1536 rows in micro-batches of 64" in lines[0]
    idle = {line.split()[0]: float(line.split()[-1]) for line in lines[2:]}
    assert idle["cgopipe"] < idle["one_by_one"] / 2
    assert all(idle["cgopipe"] < idle[name] for name in ("flexgen", "flexgen_c", "fastdecode"))


def test_nothing_overlaps_one_by_one(capsys):
    rows = [line.split("|")[1] for line in output_of("simulate_schedule.py", capsys) if "|" in line]
    for column in zip(*rows[:4], strict=True):
        assert sum(mark != " " for mark in column) <= 1
