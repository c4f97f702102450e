"""``headrace inspect``: what is said of local and registry models."""

from __future__ import annotations

import json
import shutil

import pytest

from headrace.cli.inspection import inspect_model, role_bytes
from headrace.cli.main import run
from headrace.memory.checkpoint import Checkpoint
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_models


def test_roles_sum_to_all_weights_of_every_known_model():
    for known in known_models().values():
        spec = known.spec
        pages = page_layout(spec)
        assert sum(role_bytes(spec, pages).values()) == sum(page.bytes for page in pages)


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


@pytest.fixture
def poisoned(checkpoint, tmp_path):
    """The checkpoint with a NaN in an expert, and a config that names code."""
    folder = shutil.copytree(checkpoint, tmp_path / "poisoned")
    found = Checkpoint.open(folder)
    entry = found.tensors["model.layers.1.block_sparse_moe.experts.5.w3.weight"]
    with found.files[entry.file].open("r+b") as file:
        file.seek(entry.offset + 4 * 3)
        file.write(b"\0\0\xc0\x7f")
    config = json.loads((folder / "config.json").read_text())
    auto = {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    (folder / "config.json").write_text(json.dumps(config | auto))
    return folder


def test_weights_are_checked_on_request(checkpoint, poisoned, capsys):
    assert run(["inspect", str(checkpoint), "--check-weights"]) == 0
    assert "nothing: all weights were read" in capsys.readouterr().out
    assert run(["inspect", str(poisoned), "--check-weights"]) == 1
    text = capsys.readouterr().out
    assert "experts.5.w3.weight (layer 1, expert 5) holds 1 NaN" in " ".join(text.split())
    assert "auto_map" in text
    assert run(["inspect", str(poisoned), "--check-weights", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (bad,) = found["nonfinite"]
    assert (bad["layer"], bad["expert"], bad["count"], bad["index"]) == (1, 5, 1, [0, 3])
    assert found["names_code"]


def test_weights_are_not_read_unasked(poisoned, capsys):
    assert run(["inspect", str(poisoned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nonfinite"] is None


def test_a_registry_model_has_no_weights_to_check(capsys):
    assert run(["inspect", "mixtral-8x7b", "--check-weights"]) == 2
    assert "checkpoint folder" in capsys.readouterr().err


def test_tensors_of_another_shape_are_refused_by_inspect(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    small = {"num_attention_heads": 2, "num_key_value_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | small))
    assert run(["inspect", str(folder)]) == 2
    assert "shape of tensor" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["wide", "-3", "0", "", "99999999999999999999"])
def test_a_terminal_of_any_width(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert run(["inspect", "mixtral-8x7b"]) == 0
    assert "8 experts of 14336" in capsys.readouterr().out
