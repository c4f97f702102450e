"""calibrate, and what plans and runs make of the profile; verify of a run."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from headrace.cli.calibration import profile_tables, with_stock_link
from headrace.cli.main import run
from headrace.engine.link import Accelerator
from headrace.engine.probe import usable_threads
from headrace.engine.profiles import profile_path
from headrace.planner.profile import MOST_RESIDUAL, profile_from
from headrace.specs.registry import known_hardware


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def calibrated(cache, checkpoint):
    """The profile of a short calibration with a small checkpoint, as ``--json`` gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        code, out = _captured(["calibrate", "--seconds", "1", "--path", str(checkpoint), "--json"])
    assert code == 0
    return json.loads(out)


def _captured(arguments):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(arguments)
    return code, out.getvalue()


def test_a_profile_is_kept_and_compared_with_stock(calibrated, cache):
    kept = json.loads((cache / "headrace" / "profile.json").read_text())
    assert calibrated["kept"] == str(cache / "headrace" / "profile.json")
    assert kept == calibrated["profile"]
    disk = calibrated["difference"]["disk"]
    assert disk["difference"] == pytest.approx(disk["measured"] / disk["stock"] - 1)
    assert {(r["request_bytes"] >> 20, r["depth"]) for r in kept["reads"]} == {
        (size, depth) for size in (1, 4, 16) for depth in (1, 2, 4)
    }
    assert [shape["streams"] for shape in kept["shapes"]] == [False, True]
    assert set(kept["beside"]) == {"reads", "arithmetic"}


def test_without_an_accelerator_there_is_no_link(calibrated):
    assert calibrated["link"] is None
    assert not {"h2d", "d2h"} & (calibrated["profile"]["hardware"]["roofs"].keys())
    assert not {"h2d", "d2h"} & calibrated["difference"].keys()
    stock = known_hardware("cpu-2core").hardware
    rates = profile_tables(profile_from(calibrated["profile"]), stock)[0]
    assert "none: no accelerator that torch can use" in list(rates.columns[1].cells)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_link_is_compared_with_that_of_the_same_card(name, known):
    stock = known_hardware("cpu-2core").hardware
    there = Accelerator(name, torch.device("cpu"), lambda: None)
    found, card = with_stock_link(stock, there)
    assert card == known
    assert found.roofs.get("h2d") == (known and known_hardware(known).hardware.roofs["h2d"])
    assert with_stock_link(stock, None) == (stock, None)


def test_tables_name_the_rates(cache, checkpoint, monkeypatch, capsys, tmp_path):
    there = Accelerator("NVIDIA L4", torch.device("cpu"), lambda: None, pins=False)
    monkeypatch.setattr("headrace.engine.link.accelerator_here", lambda: there)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()  # nowhere to keep it
    assert run(["calibrate", "--seconds", "1", "--path", str(checkpoint)]) == 0
    said = capsys.readouterr()
    assert "arithmetic" in said.out
    assert "GFLOP/s" in said.out
    assert "in flight" in said.out
    assert "to the accelerator" in said.out
    assert "from the accelerator" in said.out
    assert "cannot be kept" in said.err
    assert "XDG_CACHE_HOME" in said.err


@pytest.fixture(scope="module")
def finished(calibrated, cache, checkpoint, tmp_path_factory):
    """The output of a small run that began from the profile, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps({"prompt": f"line {i}", "max_tokens": 3}) for i in range(3)]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    output = folder / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        files = ["-i", str(folder / "in.jsonl"), "-o", str(output)]
        assert run(["run-batch", str(checkpoint), *files, "--memory", "40MB"]) == 0
    return output


def test_a_run_says_which_profile_it_began_from(finished, calibrated):
    log = finished.with_name("out.jsonl.log").read_text()
    assert f"machine: profile of {calibrated['profile']['made']}" in log


def test_a_run_is_verified_and_updates_the_profile(finished, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for named in (finished, finished.parent):
        code, out = _captured(["verify", str(named), "--json"])
        assert code == 0
        rows = json.loads(out)["compared"]
        kinds = {row["kind"] for row in rows}
        assert kinds == {"job", "lane", "op"}
        assert {"pre_attn", "attn", "logits"} <= {row["name"] for row in rows}
    before = json.loads((cache / "headrace" / "profile.json").read_text())
    assert _captured(["verify", str(finished), "--update"])[0] == 0
    after = json.loads((cache / "headrace" / "profile.json").read_text())
    assert len(after["residuals"]) == len(before["residuals"])
    assert after["shapes"] != before["shapes"]


@pytest.fixture
def profiled(calibrated, checkpoint, tmp_path, monkeypatch):
    """Runs a small job from a profile of its own; returns the profile's residuals after it."""
    kept = tmp_path / "headrace" / "profile.json"
    kept.parent.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("headrace.cli.batch_job.LEAST_SECONDS", 0.0)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 3}\n')
    output = tmp_path / "out.jsonl"

    def job(*flags, **changes):
        kept.write_text(json.dumps({**calibrated["profile"], **changes}))
        files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(output), "--fresh"]
        assert run(["run-batch", str(checkpoint), *files, "--memory", "40MB", *flags]) == 0
        summary = json.loads((tmp_path / "out.jsonl.run.json").read_text())["summary"]
        return json.loads(kept.read_text())["residuals"], summary, kept

    return job


def test_a_run_adds_how_far_it_was_from_what_was_played(profiled):
    residuals, summary, _ = profiled(residuals=[0.25])
    assert summary["predicted_bias"] == pytest.approx(0.05)
    off = math.log(summary["wall_seconds"] / summary["predicted_after_seconds"])
    expected = [0.25, off + 0.05] if abs(off + 0.05) <= MOST_RESIDUAL else [0.25]
    assert residuals == pytest.approx(expected)


@pytest.mark.parametrize("flags", [("--threads", "1"), ("--kernels", "reference")])
def test_runs_unlike_those_of_the_profile_neither_add_to_it_nor_count_with_it(profiled, flags):
    residuals, summary, _ = profiled(*flags, residuals=[0.25])
    usual = flags == ("--threads", str(usable_threads()))
    assert usual or residuals == [0.25]
    assert usual or summary["predicted_bias"] == 0.0


def test_a_profile_that_was_replaced_meanwhile_is_left_alone(profiled, monkeypatch):
    from headrace.cli import batch_job

    real = batch_job.BatchRun._remember

    def replaced(self, done):
        path = profile_path(os.environ)
        path.write_text(json.dumps({**json.loads(path.read_text()), "made": "later"}))
        real(self, done)

    monkeypatch.setattr(batch_job.BatchRun, "_remember", replaced)
    residuals, _, kept = profiled(residuals=[0.25])
    assert residuals == [0.25]
    assert json.loads(kept.read_text())["made"] == "later"


def test_without_a_profile_there_is_nothing_to_update(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["verify", str(finished), "--update"]) == 2
    assert "headrace calibrate" in capsys.readouterr().err


def test_a_damaged_profile_is_said_and_the_machine_measured(
    finished, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "headrace").mkdir()
    (tmp_path / "headrace" / "profile.json").write_text("{}")
    again = finished.with_name("again.jsonl")
    files = ["-i", str(finished.with_name("in.jsonl")), "-o", str(again)]
    assert run(["run-batch", str(checkpoint), *files, "--memory", "40MB", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "is damaged" in said.err
    assert "machine: measured now" in said.err + said.out


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_runs_that_are_not_there_are_refused(tmp_path, name, capsys):
    assert run(["verify", str(tmp_path / name)]) == 2
    assert "try:" in capsys.readouterr().err
