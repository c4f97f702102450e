"""``headrace roofline``: the points, the terminal's picture, the plot."""

from __future__ import annotations

import json
import sys

import pytest

from headrace.cli.main import run
from headrace.cli.roofline_points import chart_of
from headrace.cli.roofline_view import HEIGHT, plot_lines
from headrace.specs.registry import known_hardware, known_model

MIXTRAL = known_model("mixtral-8x7b").spec


def test_json_tells_roofs_and_points(capsys):
    arguments = ["roofline", "mixtral-8x7b", "--hardware", "l4-paper", "--batch", "32", "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [level["name"] for level in found["levels"]] == ["host", "device"]
    assert found["balance_ratio"] == pytest.approx(16 / 300)
    assert found["operating_point"]["micro_batch"] <= found["operating_point"]["rows"]
    attention, _, _, experts = found["points"]
    assert attention["best"] == "host"
    assert experts["intensity"] == pytest.approx(8.0)
    assert experts["turning_points"]["p1"] == pytest.approx(81.25)
    assert experts["reach"]["device"]["bound_by"] == "link host to device"


def test_the_terminal_shows_every_operation_under_its_roofs(capsys):
    chart = chart_of(MIXTRAL, known_hardware("l4").hardware, [1024], 128, 512)
    lines = plot_lines(chart)
    assert len(lines) == HEIGHT + 2
    drawn = "".join(lines)
    assert all(mark in drawn for mark in ("-", "/", ".", "a", "d"))
    assert run(["roofline", "olmoe-1b-7b", "--hardware", "laptop-nvme"]) == 0
    assert "link disk to host" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plots_are_written(suffix, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plot{suffix}"
    assert (
        run(["roofline", "gpt-oss-20b", "--hardware", "t4", "--plan", "none", "-o", str(file)]) == 0
    )
    assert file.stat().st_size > 1000
    if suffix == ".svg":
        assert "P1" in file.read_text()


def test_the_operating_point_of_a_plan_is_marked(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    job = ("--requests", "50", "--max-num-seqs", "7", "--max-num-batched-tokens", "71")
    assert run(["plan", "mixtral-8x7b", "--hardware", "cpu-2core", *job, "-o", str(file)]) == 0
    base = ["roofline", "mixtral-8x7b", "--hardware", "cpu-2core", "--plan"]
    capsys.readouterr()
    assert run([*base, str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["operating_point"]
    assert (found["rows"], found["micro_batch"]) == (71, 71)
    assert [p["operation"] for p in found["points"]] == [
        "attention, decode", "projections", "experts",
    ]  # fmt: skip
    assert {p["batch"] for p in found["points"]} == {71}
    plot = tmp_path / "plot.svg"
    assert run([*base, str(file), "-o", str(plot)]) == 0
    assert "capitals: the operating point of the plan" in capsys.readouterr().out
    assert "plan: experts, N = 71, mu = 71" in plot.read_text()
    assert run([*base, "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operating_point"] is None
    assert run(["roofline", "olmoe-1b-7b", "--plan", str(file)]) == 2
    assert run([*base, str(tmp_path / "none.yaml")]) == 2


def test_what_cannot_be_drawn_is_refused(tmp_path, capsys, monkeypatch):
    assert run(["roofline", "olmoe-1b-7b", "--plan", "none", "-o", str(tmp_path / "plot.gif")]) == 2
    assert run(["roofline", "olmoe-1b-7b", "--plan", "none", "--hardware", "abacus"]) == 2
    assert run(["roofline", "olmoe-1b-7b", "--plan", "none", "--kv-cache-dtype", "f4"]) == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["roofline", "olmoe-1b-7b", "--plan", "none", "-o", str(tmp_path / "plot.svg")]) == 2
    assert "headrace[plot]" in capsys.readouterr().err
