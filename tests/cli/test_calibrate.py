"""calibrate, and what plans and runs make of the profile; verify of a run."""

from __future__ import annotations

import json

import pytest

from headrace.cli.main import run


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


def test_tables_name_the_rates(cache, checkpoint, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()  # nowhere to keep it
    assert run(["calibrate", "--seconds", "1", "--path", str(checkpoint)]) == 0
    said = capsys.readouterr()
    assert "arithmetic" in said.out
    assert "GFLOP/s" in said.out
    assert "in flight" in said.out
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
    assert len(after["residuals"]) == len(before["residuals"]) + 1
    assert after["shapes"] != before["shapes"]


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
