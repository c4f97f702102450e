"""``headrace quantize`` from arguments to report, and what the other commands make of it."""

from __future__ import annotations

import json

import pytest

from headrace.cli.main import run
from headrace.cli.quantize_job import PASSAGE


def told(capsys, *arguments):
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize") / "mixtral"
    shape = ("--hidden", "64", "--width", "96", "--layers", "2", "--experts", "4", "--vocab", "300")
    assert run(["bench", "make-checkpoint", str(folder), *shape]) == 0
    return folder


def test_report_and_what_inspect_and_run_batch_say(model, tmp_path, capsys):
    made = tmp_path / "made"
    text = tmp_path / "text.txt"
    text.write_text(PASSAGE.read_text()[:300])
    flags = ("--weights", "int4", "--text", text, "--memory", "100MB")
    code, report = told(capsys, "quantize", model, "-o", made, *flags)
    assert code == 0
    assert (report["format"], report["group"]) == ("int4 in groups of 32", 32)
    assert report["bits_per_integer_weight"] == pytest.approx(4.5, abs=0.1)
    assert 0.02 < report["relative_error"] < 0.15
    names = {"layer", "attention", "experts", "output"}
    assert [set(layer) for layer in report["layers"]] == [names] * 2
    for layer in report["layers"]:
        assert 0 < layer["output"]["f32"] < 1
        assert layer["output"]["int8"] != layer["output"]["f32"]
    found = report["perplexity"]
    assert (found["text"], found["tokens"] > 100) == (str(text), True)
    assert found["change"]["f32"] == pytest.approx(found["f32"] / found["source"] - 1)
    assert abs(found["change"]["f32"]) < 0.2
    assert 0 < found["change_error"]["f32"] < 0.1

    _, seen = told(capsys, "inspect", made)
    assert seen["integers"] == {"dtype": "u4", "group": 32, "scale": "bf16", "zeros": False}
    assert seen["stored_bytes"] == report["bytes"]
    assert run(["inspect", str(made)]) == 0
    assert "int4 in groups of 32 and bf16" in capsys.readouterr().out

    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "ab"}\n')
    flags = ("-i", prompts, "-o", tmp_path / "out.jsonl", "--max-tokens", "3", "--threads", "1")
    code, plan = told(capsys, "run-batch", made, *flags, "--dry-run")
    assert any(
        "int4 in groups of 32, multiplied with activations in int8" in n for n in plan["notes"]
    )
    code, summary = told(capsys, "run-batch", made, *flags)
    assert (code, summary["done"], summary["policy"]["activations"]) == (0, 1, "int8")
    assert "x_int8" in summary["numerics"]
    code, refusal = told(capsys, "run-batch", made, *flags, "--activations", "f32")
    assert refusal["error"]["type"] == "SignatureError"


def test_tables_without_a_text(model, tmp_path, capsys):
    flags = ("--weights", "int8", "--no-evaluate")
    assert run(["quantize", str(model), "-o", str(tmp_path / "made"), *flags]) == 0
    text = capsys.readouterr().out
    for part in ("int8", "size", "error", "attention", "experts"):
        assert part in text
    assert "perplexity" not in text


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--weights", "int5"), "--weights"),
        (("--weights", "int8", "--group", "48"), "--group"),
        (("--weights", "int4", "--group", "128"), "groups of 128"),
        (("--weights", "int8", "--text", "/nowhere"), "text file"),
        (("--weights", "int8", "--text", __file__, "--no-evaluate"), "--no-evaluate"),
    ],
)
def test_what_cannot_be_honoured_is_refused(flags, part, model, tmp_path, capsys):
    code, refusal = told(capsys, "quantize", model, "-o", tmp_path / "made", *flags)
    assert code == 2
    assert part in refusal["error"]["message"]
    assert not (tmp_path / "made").exists()


def test_activations_of_int8_need_integer_weights(model, capsys):
    code, refusal = told(capsys, "generate", model, "a", "--activations", "int8")
    assert (code, refusal["error"]["type"]) == (2, "UsageError")
    code, refusal = told(capsys, "generate", model, "a", "--activations", "int3")
    assert "--activations" in refusal["error"]["message"]


def test_activations_of_bf16_are_for_weights_in_bf16(model, tmp_path, capsys):
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "ab"}\n')
    flags = ("-i", prompts, "-o", tmp_path / "out.jsonl", "--max-tokens", "3", "--threads", "1")
    code, summary = told(capsys, "run-batch", model, *flags, "--activations", "bf16")
    assert (code, summary["done"], summary["policy"]["activations"]) == (0, 1, "bf16")
    assert "x_bf16" in summary["numerics"]
    code, refusal = told(capsys, "run-batch", model, *flags)
    assert refusal["error"]["type"] == "SignatureError"
    code, plan = told(capsys, "plan", model, "--activations", "bf16", "--requests", "2")
    assert (code, plan["policy"]["activations"]) == (0, "bf16")
    halves = tmp_path / "f16"
    shape = ("--hidden", "64", "--width", "96", "--layers", "1", "--vocab", "300")
    assert run(["bench", "make-checkpoint", str(halves), *shape, "--dtype", "f16"]) == 0
    capsys.readouterr()
    for command in ("generate", "plan"):
        asked = ("a",) if command == "generate" else ()
        code, refusal = told(capsys, command, halves, *asked, "--activations", "bf16")
        assert (code, refusal["error"]["type"]) == (2, "UsageError")
        assert "weights in bf16" in refusal["error"]["message"]
