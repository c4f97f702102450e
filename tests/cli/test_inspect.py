"""``headrace inspect``: what is said of local and registry models."""

from __future__ import annotations

import json

from headrace.cli.inspection import inspect_model, role_bytes
from headrace.cli.main import run
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_models


def test_roles_sum_to_all_weights_of_every_known_model():
    for known in known_models().values():
        spec = known.spec
        total = sum(page.bytes for page in page_layout(spec))
        assert sum(role_bytes(spec).values()) == total


def test_registry_model_as_tables(capsys):
    assert run(["inspect", "mixtral-8x7b"]) == 0
    text = capsys.readouterr().out
    for part in ("46.70 B, 12.88 B active", "93.4 GB", "131 KB f16", "96.6%", "8 experts of 14336"):
        assert part in text


def test_repo_id_finds_the_same_model():
    assert inspect_model("mistralai/Mixtral-8x7B-Instruct-v0.1").name.startswith("mixtral-8x7b")


def test_local_folder_as_json(checkpoint, capsys):
    assert run(["inspect", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "mixtral"
    assert found["stored_bytes"] == sum(found["bytes_by_role"].values())
    assert found["files"] > 2
    assert found["shape"] | {"layers": 2, "experts": 8, "head_dim": 8} == found["shape"]
    assert found["kv_bytes_per_token"]["f16"] == 2 * 2 * 2 * 8 * 2


def test_local_folder_as_tables(checkpoint, capsys):
    assert run(["inspect", str(checkpoint)]) == 0
    assert "local folder" in capsys.readouterr().out


def test_tied_head_and_models_that_cannot_run_yet_are_said(capsys):
    run(["inspect", "smollm2-135m"])
    assert "is the embedding table" in capsys.readouterr().out
    run(["inspect", "qwen3-30b-a3b"])
    assert "not run yet" in capsys.readouterr().out


def test_broken_checkpoint_exits_2(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert run(["inspect", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
