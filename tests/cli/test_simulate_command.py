"""``headrace simulate`` and ``bench replay``: figures as data and as tables, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli import replay as view
from headrace.cli.main import run
from headrace.cli.output import console
from headrace.cli.replay import print_replay, replay_report, verdicts
from headrace.planner.published import read_published

CLASSIC = "batch_size: 504\nmicro_batch_size: 36\nuse_cpu_attention: true\nuse_gpu_ffn: true\n"
JOB = ("--prompt-len", "77", "--gen-len", "16", "--requests", "504")


@pytest.fixture
def classic(tmp_path: Path) -> str:
    file = tmp_path / "policy.yaml"
    file.write_text(CLASSIC)
    return str(file)


def simulated(capsys, *arguments: str) -> dict:
    command = ["simulate", "mixtral-8x7b", "--hardware", "t4", *JOB, *arguments, "--json"]
    assert run(command) == 0
    return json.loads(capsys.readouterr().out)


def test_a_policy_file_is_priced_by_whose_runtime_runs_it(capsys, classic):
    ours = simulated(capsys, "--policy", classic)
    theirs = simulated(capsys, "--policy", classic, "--as", "moe-lightning")
    assert ours["simulated"]
    assert ours["schedule"] == theirs["schedule"] == "cgopipe"
    assert theirs["policy"]["pageable"]
    assert theirs["prediction"]["sweeps"] == 16  # one of prompts, fifteen steps
    found = ours["prediction"]
    assert found["job_seconds"] < theirs["prediction"]["job_seconds"]
    assert found["bound_seconds"] <= found["job_seconds"]
    assert found["tokens_per_second"] == pytest.approx(504 * 16 / found["job_seconds"])
    assert found["lanes"][found["bound_by"]]["utilisation"] <= 1.0
    assert found["time_to_first_token_seconds"]["p99"] <= found["job_seconds"]
    assert ours["memory"]["device"]["planned_bytes"] < 15e9
    assert found["bytes_moved"]["h2d"] > 80e9


def test_a_job_of_ranges_is_drawn_and_padded_by_whose_runtime_pads(capsys, classic):
    ranges = ("--prompt-len", "20-134", "--gen-len", "4-28")  # the later one counts
    ours = simulated(capsys, "--policy", classic, *ranges)
    workload = ours["workload"]
    assert 20 <= workload["prompt_len"]["min"] < workload["prompt_len"]["max"] <= 134
    assert ours["prediction"]["tokens_per_second"] == pytest.approx(
        workload["gen_tokens"] / ours["prediction"]["job_seconds"]
    )
    assert ours["notes"] == [
        "prompts of 20 to 134 tokens and outputs of 4 to 28, drawn from seed 0"
    ]
    other = simulated(capsys, "--policy", classic, *ranges, "--seed", "7")
    assert other["workload"] != workload
    padded = simulated(capsys, "--policy", classic, *ranges, "--as", "flexgen")
    longest = str(workload["prompt_len"]["max"]), str(workload["gen_len"]["max"])
    even = ("--prompt-len", longest[0], "--gen-len", longest[1])
    alike = simulated(capsys, "--policy", classic, *even, "--as", "flexgen")
    took = alike["prediction"]["job_seconds"]
    assert padded["prediction"]["job_seconds"] == pytest.approx(took, rel=0.01)
    assert alike["notes"] == []


def test_lengths_beyond_the_context_or_reversed_are_refused(capsys, classic):
    base = ["simulate", "mixtral-8x7b", "--hardware", "t4", "--policy", classic]
    assert run([*base, "--prompt-len", "9-4"]) == 2
    assert "--prompt-len 4-9" in " ".join(capsys.readouterr().err.split())
    assert run([*base, "--prompt-len", "40000"]) == 2
    assert "32768 tokens together" in " ".join(capsys.readouterr().err.split())
    assert run([*base, "--gen-len", "some"]) == 2


def test_a_schedule_may_be_named_instead(capsys, classic):
    assert simulated(capsys, "--policy", classic, "--schedule", "flexgen")["schedule"] == "flexgen"
    zero = simulated(capsys, "--policy", classic, "--as", "zero")
    assert (zero["schedule"], zero["policy"]["kv_on_device"]) == ("flexgen", 1.0)


def test_people_get_tables_and_what_does_not_fit(capsys, tmp_path):
    file = tmp_path / "p.json"
    file.write_text('{"schedule": "two_group", "max_seqs": 500, "max_rows": 700, "r_w": 0.4}')
    command = ["simulate", "mixtral-8x7b", "--hardware", "t4", *JOB, "--policy", str(file)]
    assert run(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "as headrace runs it: simulated" in text
    assert "504: prompts of 77 tokens, outputs of 16" in text
    assert "moved over h2d" in text
    assert "does not fit" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_seqs: [", "not YAML"),
        ("- 1", "mapping"),
        ("max_seqs: &a 4\nmax_rows: *a", "anchors"),
        ("max_seqs: 4\nschedule: nothing", "cgopipe"),
        ("max_seqs: .nan", "whole number"),
    ],
)
def test_hostile_policies_are_refused(capsys, tmp_path, text, said):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    command = ["simulate", "mixtral-8x7b", "--hardware", "t4", "--policy", str(file)]
    assert run(command) == 2
    assert said in capsys.readouterr().err


def test_unknown_runtimes_and_missing_files_are_refused(capsys, classic):
    base = ["simulate", "mixtral-8x7b", "--hardware", "t4"]
    assert run([*base, "--policy", classic, "--as", "vllm"]) == 2
    assert "moe-lightning" in capsys.readouterr().err
    assert run([*base, "--policy", classic + ".none"]) == 2


def few_rows():
    published = read_published()
    systems = ("MoE-Lightning", "FlexGen")
    rows = tuple(r for r in published.rows if r.gen == 256 and r.system in systems)
    carried = published.carried[:1]
    several = tuple(r for r in published.several if r.system == "MoE-Lightning(p)")[:1]
    return replace(published, rows=rows, ablation=(), carried=carried, several=several)


def test_the_replay_prints_every_residual_and_its_misses(capsys, monkeypatch):
    monkeypatch.setattr(view, "read_published", few_rows)
    report = replay_report(with_ours=False, say=print)
    assert json.loads(json.dumps(report))["rows"][0]["residual"] == report["rows"][0]["residual"]
    print_replay(report, console())
    out = capsys.readouterr().out
    assert "gpu_flops_share" in out
    assert "l4 kernel_flops" in out
    every = (*report["rows"], *report["carried"], *report["several"])
    assert all(f"{row['residual']:+.1%}" in out for row in every)
    assert "mixtral-8x22b" in out
    report["summary"]["worst_error_met"] = False
    swapped = {"machine": "t4", "task": "MTBench", "gen": 1, "systems": ["A", "B"]}
    report["swapped"] = [swapped]
    lines = verdicts(report)
    assert "MISSED on one T4: worst_error" in lines
    assert any(
        line.startswith("several T4, mixtral-8x22b: MoE-Lightning's 1 rows") for line in lines
    )
    of_l4 = next(line for line in lines if line.startswith("one L4: MoE-Lightning's 1 rows"))
    assert of_l4.endswith("no baselines priced")
    assert lines[-1] == "order: A and B are swapped, t4, MTBench, gen 1"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_replay_runs(capsys):
    assert run(["bench", "replay", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["rows"]) == 28
    assert len(report["carried"]) == 18
    assert len(report["several"]) == 32
    assert not report["swapped"]
    assert all(row["gain"] > 0 for row in report["ours"])
