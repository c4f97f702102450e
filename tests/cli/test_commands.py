"""The commands that run a model, end to end on a tiny checkpoint."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest

from headrace.cli.main import run

pytest.importorskip("torch")

MEMORY = ("--memory", "64MB")

RUN_FIELDS = {
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "wall_seconds",
    "bytes_read",
    "bytes_needed",
    "direct_io",
    "lanes",
    "peak_rss_bytes",
    "predicted_seconds",
    "tiers",
}
BENCH_FIELDS = RUN_FIELDS | {"bound_seconds", "one_by_one_seconds", "overlap_efficiency"}

LINES = [
    {"prompt": "Hello there", "max_tokens": 4},
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0},
    },
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
]


@pytest.fixture(autouse=True)
def stock_machine(monkeypatch):
    """Spare every run the seconds that measuring the machine takes."""
    from headrace.specs.registry import known_hardware

    hardware = known_hardware("cpu-2core").hardware
    monkeypatch.setattr("headrace.engine.llm.measure_machine", lambda *_, **__: hardware)


@pytest.fixture
def batch(tmp_path):
    """Write a batch file, return the arguments that name it and its output."""

    def write(*lines: object) -> list[str]:
        source = tmp_path / "in.jsonl"
        texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
        source.write_text("".join(f"{t}\n" for t in texts))
        return ["-i", str(source), "-o", str(tmp_path / "out.jsonl")]

    return write


def answers(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_generate_streams_text(checkpoint, capsys):
    assert run(["generate", str(checkpoint), "Hi", "--max-tokens", "4", *MEMORY]) == 0
    shown = capsys.readouterr().out
    assert run(["generate", str(checkpoint), "Hi", "--max-tokens", "4", *MEMORY, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] + "\n" == shown
    assert answer["prompt"] == "Hi"


def test_run_batch_answers_reports_and_draws(checkpoint, batch, tmp_path, capsys):
    files = batch(*LINES)
    trace = tmp_path / "trace.json"
    assert (
        run(["run-batch", str(checkpoint), *files, *MEMORY, "--trace", str(trace), "--json"]) == 0
    )
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["lines"], summary["done"], summary["failed"]) == (3, 3, 0)
    assert summary.keys() >= RUN_FIELDS
    assert "bound by" in captured.err  # the plan
    assert "predicted time" in (tmp_path / "out.jsonl.log").read_text()
    assert len(answers(tmp_path)) == 3
    ElementTree.parse(tmp_path / "trace.json.svg")
    assert {e["ph"] for e in json.loads(trace.read_text())["traceEvents"]} == {"M", "X"}


def test_run_batch_resumes_retries_and_starts_afresh(checkpoint, batch, tmp_path, capsys):
    files = batch(*LINES, "{not json")
    arguments = ["run-batch", str(checkpoint), *files, *MEMORY]
    assert run([*arguments, "--limit", "1"]) == 0
    assert len(answers(tmp_path)) == 1
    assert run(arguments) == 1  # a line carries an error
    assert len(answers(tmp_path)) == 4
    assert "1 of them failed" in capsys.readouterr().err
    assert run(arguments) == 1
    assert "nothing left to do" in capsys.readouterr().err
    assert run([*arguments, "--retry-errors"]) == 1
    assert len(answers(tmp_path)) == 4
    assert run([*arguments, "--seed", "1"]) == 2  # another run's output
    assert run([*arguments, "--seed", "1", "--fresh"]) == 1
    assert len(answers(tmp_path)) == 4


def test_dry_run_plans_and_leaves_nothing_behind(checkpoint, batch, tmp_path, capsys):
    files = batch(*LINES)
    assert run(["run-batch", str(checkpoint), *files, *MEMORY, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["pending"], plan["policy"]["schedule"]) == (3, "resident")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_dry_run_does_not_touch_an_output(checkpoint, batch, tmp_path, capsys):
    files = batch(*LINES)
    arguments = ["run-batch", str(checkpoint), *files, *MEMORY]
    run([*arguments, "--limit", "2"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for more, pending in ((), 1), (("--fresh",), 3), (("--retry-errors",), 1):
        capsys.readouterr()
        assert run([*arguments, "--dry-run", "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["pending"] == pending
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_dry_run_counts_the_errors_that_would_be_done_again(checkpoint, batch, tmp_path, capsys):
    arguments = ["run-batch", str(checkpoint), *batch(*LINES, "{not json"), *MEMORY]
    assert run(arguments) == 1
    with (tmp_path / "out.jsonl").open("ab") as output:
        output.write(b'{"torn')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    capsys.readouterr()
    assert run([*arguments, "--dry-run", "--json", "--retry-errors"]) == 0
    assert json.loads(capsys.readouterr().out)["pending"] == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_trace_never_replaces_a_file_of_the_job(checkpoint, batch, capsys):
    files = batch(*LINES)
    for name in (files[1], files[3]):
        assert run(["run-batch", str(checkpoint), *files, *MEMORY, "--trace", name]) == 2
    assert "--trace would replace" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_costs_a_warning(checkpoint, batch, tmp_path, capsys):
    (tmp_path / "out.jsonl.log").mkdir()
    assert run(["run-batch", str(checkpoint), *batch(*LINES), *MEMORY]) == 0
    assert "no log: " in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(LINES)


def test_budget_that_cannot_work_names_the_smallest(checkpoint, batch, capsys):
    arguments = ["run-batch", str(checkpoint), *batch(*LINES), "--memory", "100KB", "--json"]
    assert run(arguments) == 2
    assert json.loads(capsys.readouterr().out)["error"]["smallest_bytes"] > 100_000


def test_throughput_reports_what_was_asked_for(checkpoint, tmp_path, capsys):
    arguments = ["bench", "throughput", str(checkpoint), *MEMORY]
    load = ["--batch", "3", "--prompt-len", "5", "--gen-len", "4"]
    trace = ["--trace", str(tmp_path / "t.json")]
    assert run([*arguments, *load, *trace, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompt_tokens"], report["generated_tokens"]) == (15, 12)
    assert report.keys() >= BENCH_FIELDS
    ElementTree.parse(tmp_path / "t.json.svg")
    assert run([*arguments, *load]) == 0
    assert "Output token throughput (tok/s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--memory", "lots"], "not a size"),
        (["--schedule", "fast"], "--schedule"),
        (["--kv-cache-dtype", "int2"], "--kv-cache-dtype"),
        (["-i", "nowhere.jsonl"], "no such input file"),
        (["-o", "/nowhere/out.jsonl"], "existing folder"),
        (["--trace", "/nowhere/trace.json"], "--trace"),
    ],
)
def test_bad_arguments_are_refused_before_torch_is_needed(checkpoint, batch, capsys, change, part):
    assert run(["run-batch", str(checkpoint), *batch(*LINES), *change]) == 2
    assert part in capsys.readouterr().err


def test_model_that_is_no_folder_and_output_that_is_the_input_are_refused(
    checkpoint, batch, capsys
):
    files = batch(*LINES)
    assert run(["run-batch", "nowhere", *files]) == 2
    assert run(["run-batch", str(checkpoint), "-i", files[1], "-o", files[1]]) == 2
    assert run(["generate", "nowhere", "Hi"]) == 2
    assert run(["generate", str(checkpoint), ""]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_prompt_comes_from_stdin_too(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi"))
    arguments = ["generate", str(checkpoint), "-", "--raw", "--max-tokens", "2", *MEMORY, "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "Hi"


def test_a_system_message_without_a_template_is_refused(checkpoint, capsys):
    assert run(["generate", str(checkpoint), "Hi", "--raw", "--system", "Be brief.", *MEMORY]) == 2
    assert "--system" in capsys.readouterr().err


def test_only_bad_lines_still_get_their_error_lines(checkpoint, batch, tmp_path):
    assert run(["run-batch", str(checkpoint), *batch("{", "[1]"), *MEMORY]) == 1
    assert [line["error"]["code"] for line in answers(tmp_path)] == ["invalid_json"] * 2


def test_smallest_budget_streams_and_is_compared_with_the_same_policy_one_by_one(tmp_path, capsys):
    shape = ["--layers", "2", "--hidden", "64", "--width", "256", "--experts", "16"]
    assert run(["bench", "make-checkpoint", str(tmp_path / "m"), *shape]) == 0
    capsys.readouterr()
    arguments = ["bench", "throughput", str(tmp_path / "m"), "--json"]
    arguments += ["--batch", "2", "--prompt-len", "4", "--gen-len", "3"]
    assert run([*arguments, "--memory", "1KB"]) == 2
    smallest = json.loads(capsys.readouterr().out)["error"]["smallest_bytes"]
    assert run([*arguments, "--memory", str(smallest)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schedule"] in ("stream", "on_demand")
    assert report["bytes_read"] > 0
    assert report["one_by_one_seconds"] > 0
    assert report["overlap_efficiency"] is not None
    assert report["disk_drift"] >= 0
