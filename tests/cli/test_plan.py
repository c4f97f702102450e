"""``headrace plan``: figures, files, jobs, and the run that follows a plan."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from headrace.cli.main import run
from headrace.cli.workload_source import lengths_of
from headrace.errors import InputFileError
from tests.cli.helpers import run_process

JOB = ("--prompt-len", "16", "--gen-len", "4", "--requests", "6")
PREDICTION = {
    "job_seconds",
    "interval",
    "tokens_per_second",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "bound_by",
    "lanes",
}


@pytest.fixture
def batch(tmp_path):
    """Write a batch file, return its path."""

    def write(*lines: object):
        source = tmp_path / "in.jsonl"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return source

    return write


def planned(capsys, *arguments: str) -> dict:
    assert run(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_what_programs_read(checkpoint, capsys):
    found = planned(capsys, str(checkpoint), *JOB, "--hardware", "laptop-nvme")
    assert found["prediction"].keys() >= PREDICTION
    low, high = found["prediction"]["interval"]
    assert low < found["prediction"]["job_seconds"] < high
    host = found["memory"]["host"]
    assert 0 < host["planned_bytes"] <= host["capacity_bytes"] == 14_400_000_000
    assert found["policy"]["schedule"] == found["schedule"]
    assert {b["name"] for b in found["baselines"]} >= {"resident", "one_by_one"}
    assert found["workload"]["requests"] == 6


def test_tables_answer_first(checkpoint, capsys):
    arguments = ["plan", str(checkpoint), *JOB, "--hardware", "cpu-2core", "--compare"]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert [line[:5] for line in said.splitlines()].index("job: ") <= 5  # long paths wrap
    for part in ("90 %", "bound by", "kv cache", "this plan", "one_by_one", "stock figures"):
        assert part in said


@pytest.fixture(autouse=True)
def no_profile(monkeypatch, tmp_path):
    """Nothing that was calibrated on the machine of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_this_machine_is_the_default_and_says_what_its_rates_are(checkpoint, capsys):
    found = planned(capsys, str(checkpoint), *JOB, "--memory", "64MB")
    assert found["hardware"]["source"]
    assert found["memory"]["host"]["capacity_bytes"] == 64_000_000
    assert found["policy"]["kernels"] in ("native", "reference")


def test_a_calibrated_profile_is_taken_or_passed_over_aloud(checkpoint, capsys, monkeypatch):
    from dataclasses import replace

    from headrace.errors import UsageError
    from headrace.planner.profile import Profile
    from headrace.specs.registry import known_hardware

    measured = replace(known_hardware("laptop-nvme").hardware, measured=True)
    profile = Profile("2026-11-26", {}, measured)
    monkeypatch.setattr("headrace.engine.profiles.read_profile", lambda path: profile)
    found = planned(capsys, str(checkpoint), *JOB, "--memory", "64MB")
    assert found["hardware"]["measured"]
    assert "profile of 2026-11-26" in found["hardware"]["source"]

    def damaged(path):
        raise UsageError("a profile of another machine")

    monkeypatch.setattr("headrace.engine.profiles.read_profile", damaged)
    assert run(["plan", str(checkpoint), *JOB, "--memory", "64MB"]) == 0
    captured = capsys.readouterr()
    assert "not used: a profile of another machine" in captured.err
    assert "stock figures for its cores" in captured.out


def test_no_torch_is_imported(checkpoint, tmp_path):
    found = run_process("plan", str(checkpoint), *JOB, "--json", "-o", str(tmp_path / "p.yaml"))
    assert found.returncode == 0, found.stderr
    code = (
        "import sys\nfrom headrace.cli.main import run\n"
        f"run(['plan', {str(checkpoint)!r}, '--requests', '2', '--json'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_hardware_from_files(checkpoint, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("like: laptop-nvme\nname: mine\nroofs: {disk: 6GB/s}\n")
    found = planned(capsys, str(checkpoint), *JOB, "--hardware", str(own))
    assert found["hardware"]["name"] == "mine"
    own.write_text("like: laptop-nvme\nwheels: 4\n")
    assert run(["plan", str(checkpoint), "--hardware", str(own)]) == 2
    own.write_text("a: &x [1]\nb: *x\n")
    assert run(["plan", str(checkpoint), "--hardware", str(own)]) == 2
    assert run(["plan", str(checkpoint), "--hardware", str(tmp_path / "none.yaml")]) == 2
    assert run(["plan", str(checkpoint), "--hardware", "abacus"]) == 2


def test_what_cannot_be_planned_is_refused(checkpoint, tmp_path, capsys, batch):
    model = str(checkpoint)
    assert run(["plan", model, "--memory", "1MB", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["smallest_bytes"] > 1_000_000
    assert run(["plan", model, "--device-memory", "1GB", "--hardware", "cpu-2core"]) == 2
    assert run(["plan", model, "--prompt-len", "9999999"]) == 2
    assert run(["plan", model, "-o", str(tmp_path / "no" / "p.yaml")]) == 2
    assert run(["plan", model, "--input", str(batch({"prompt": "a"})), "--requests", "3"]) == 2
    assert run(["plan", model, "--input", str(tmp_path / "none.jsonl")]) == 2
    assert run(["plan", model, "--kv-cache-dtype", "f4"]) == 2


def test_lengths_are_drawn_from_a_range_and_known(checkpoint, capsys):
    base = (str(checkpoint), "--requests", "40", "--hardware", "cpu-2core", "--memory", "64MB")
    ranges = ("--prompt-len", "4-30", "--gen-len", "2-9")
    found = planned(capsys, *base, *ranges)
    workload = found["workload"]
    assert workload["assumed"] is False
    assert 4 <= workload["prompt_len"]["min"] < workload["prompt_len"]["max"] <= 30
    assert workload["gen_len"]["mean"] == pytest.approx(workload["gen_tokens"] / 40)
    assert "prompts of 4 to 30 tokens and outputs of 2 to 9, drawn from seed 0" in found["notes"]
    assert planned(capsys, *base, *ranges)["workload"] == workload
    assert planned(capsys, *base, *ranges, "--seed", "1")["workload"] != workload
    even = planned(capsys, *base, "--prompt-len", "8", "--gen-len", "3")
    assert even["workload"]["prompt_len"] == {"mean": 8.0, "min": 8, "max": 8}
    assert not any("drawn" in note for note in even["notes"])


def test_ranges_come_from_configuration_files_too(checkpoint, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("plan: {gen-len: 2-9, prompt-len: 8, requests: 20}\n")
    base = (str(checkpoint), "--hardware", "cpu-2core", "--memory", "64MB")
    workload = planned(capsys, *base, "--config", str(file))["workload"]
    assert workload["prompt_len"]["max"] == 8
    assert workload["gen_len"]["min"] < workload["gen_len"]["max"] <= 9


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (("--prompt-len", "long"), "--prompt-len 32-512"),
        (("--gen-len", "9-2"), "--gen-len 2-9"),
        (("--gen-len", "0"), "at least 1 token"),
        (("--prompt-len", "5-99999999"), "tokens together"),
    ],
)
def test_lengths_that_cannot_be_are_refused(checkpoint, capsys, lengths, said):
    assert run(["plan", str(checkpoint), *lengths]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_lengths_come_from_the_models_own_tokenizer(checkpoint, batch, capsys):
    file = batch(
        {"prompt": "Hello there", "max_tokens": 6}, {"prompt": [5, 6, 7], "n": 2}, {"no": 1}
    )
    found = planned(capsys, str(checkpoint), "--input", str(file), "--max-tokens", "8")
    workload = found["workload"]
    assert (workload["requests"], workload["assumed"]) == (3, True)
    assert workload["gen_tokens"] == 3 + 4 + 4
    assert any("1 lines at fault" in note for note in found["notes"])


def test_without_a_tokenizer_prompts_are_guessed_and_the_interval_says_so(batch, capsys):
    file = batch({"prompt": "x" * 400, "max_tokens": 4, "ignore_eos": True})
    known = planned(
        capsys, "smollm2-135m", "--prompt-len", "100", "--gen-len", "4", "--requests", "1"
    )
    guessed = planned(capsys, "smollm2-135m", "--input", str(file))
    assert guessed["workload"]["prompt_tokens"] == 100
    assert guessed["prediction"]["interval"][1] > known["prediction"]["interval"][1]
    assert any("no tokenizer" in note for note in guessed["notes"])


def test_of_a_long_file_a_sample_is_counted(checkpoint, batch, monkeypatch):
    monkeypatch.setattr("headrace.cli.workload_source.SAMPLED", 10)
    lines = [{"prompt": "word " * (1 + i % 7), "max_tokens": 2} for i in range(95)]
    path = batch(*lines)
    sampled = lengths_of(path, checkpoint, 4096, 8)
    monkeypatch.setattr("headrace.cli.workload_source.SAMPLED", 1000)
    whole = lengths_of(path, checkpoint, 4096, 8)
    assert whole.error == 0.0 < sampled.error < 0.5
    assert sampled.workload.requests == whole.workload.requests == 95
    ratio = sampled.workload.prompt_tokens / whole.workload.prompt_tokens
    assert abs(ratio - 1) < 2 * sampled.error + 0.05
    with pytest.raises(InputFileError):
        lengths_of(batch({"prompt": ""}, {"nothing": 1}), None, 1, 8)


def test_changes_are_priced_and_what_not_to_buy_is_said(checkpoint, capsys):
    arguments = (str(checkpoint), *JOB, "--hardware", "cpu-2core", "--memory", "64MB")
    found = planned(capsys, *arguments, "--what-if")
    changes = {each["change"]: each for each in found["what_if"]}
    assert {"twice the host memory", "a disk twice as fast"} <= changes.keys()
    assert any(name.startswith("int8 weights") for name in changes)
    for each in changes.values():
        if each["gain"] is not None:
            expected = 1 - each["job_seconds"] / found["prediction"]["job_seconds"]
            assert each["gain"] == pytest.approx(expected)
    assert changes["a disk twice as fast"]["gain"] < 0.03, "everything fits: nothing is read"
    assert "a disk twice as fast" in found["advice"].split("Do not buy")[1]
    assert run(["plan", *arguments, "--what-if"]) == 0
    assert "Do not buy" in capsys.readouterr().out


def test_a_plan_that_was_written_is_run_as_it_stands(
    checkpoint, batch, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("torch")
    from headrace.specs.registry import known_hardware

    hardware = known_hardware("cpu-2core").hardware
    monkeypatch.setattr("headrace.engine.llm.measure_machine", lambda *_, **__: hardware)
    file = batch({"prompt": "Hello there", "max_tokens": 4}, {"prompt": "You", "max_tokens": 3})
    plan, model = tmp_path / "plan.yaml", str(checkpoint)
    assert run(["plan", model, "-i", str(file), "--memory", "64MB", "-o", str(plan)]) == 0
    content = yaml.safe_load(plan.read_text())
    assert content["policy"]["max_seqs"] == 2
    content["policy"] |= {"max_seqs": 1, "threads": 1}
    plan.write_text(yaml.safe_dump(content))
    base = ["run-batch", model, "-i", str(file), "-o", str(tmp_path / "out.jsonl")]
    capsys.readouterr()
    assert run([*base, "--plan", str(plan), "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["done"] == 2
    assert summary["policy"]["max_seqs"] == 1
    assert "as it stands" in captured.err


def test_a_plan_that_cannot_be_honoured_is_refused(
    checkpoint, batch, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("torch")
    from headrace.specs.registry import known_hardware

    hardware = known_hardware("cpu-2core").hardware
    monkeypatch.setattr("headrace.engine.llm.measure_machine", lambda *_, **__: hardware)
    file = batch({"prompt": "Hello there", "max_tokens": 4})
    plan, model = tmp_path / "plan.yaml", str(checkpoint)
    run(["plan", model, "-i", str(file), "--memory", "64MB", "-o", str(plan)])
    content = yaml.safe_load(plan.read_text())
    base = ["run-batch", model, "-i", str(file), "-o", str(tmp_path / "out.jsonl"), "--plan"]

    def refused(change: dict, *more: str) -> str:
        altered = {**content, **change}
        plan.write_text(yaml.safe_dump(altered))
        capsys.readouterr()
        assert run([*base, str(plan), *more]) == 2
        return capsys.readouterr().err

    policy = content["policy"]
    assert "another model" in refused({"model": {**content["model"], "layout": "0" * 16}})
    assert "more host memory" in refused({}, "--memory", "1MB")
    assert "accelerator" in refused(
        {"policy": {**policy, "compute": "device", "schedule": "cgopipe"}}
    )
    assert "threads" in refused({"policy": {**policy, "threads": 1000}})
    assert "unknown field 'speed'" in refused({"policy": {**policy, "speed": 11}})
    assert "unknown field 'extra'" in refused({"extra": 1})
    assert "beside --plan" in refused({}, "--threads", "1")
    assert "beside --plan" in refused({}, "--kv-cache-dtype", "int8")
    assert "beside --plan" in refused({}, "--follow-routing")
    assert "longest request" in refused({"policy": {**policy, "kv_blocks": 0}})
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def slow_memory(tmp_path):
    """A machine on which bytes of memory are all that costs."""
    file = tmp_path / "slow.yaml"
    roofs = "{cpu_flops: 1e15, dram: 1MB/s, disk: 1GB/s}"
    file.write_text(f"name: slow memory\nroofs: {roofs}\ncapacity: {{host: 1GB}}\n")
    return str(file)


def test_formats_that_are_allowed_are_chosen_aloud(checkpoint, slow_memory, capsys):
    arguments = (str(checkpoint), *JOB, "--hardware", slow_memory)
    found = planned(capsys, *arguments, "--formats", "any")
    formats = found["formats"]
    assert (formats["weights"], formats["kv_cache_dtype"]) == ("int8", "f16")
    tried = {(each["weights"], each["kv_cache_dtype"]): each for each in formats["tried"]}
    assert len(tried) == 6
    assert "no group of 128, 64, 32 columns" in tried["int4", "f16"]["refusal"]
    chosen, stored = tried["int8", "f16"], tried["stored", "f16"]
    assert chosen["job_seconds"] == found["prediction"]["job_seconds"]
    assert chosen["gain"] == pytest.approx(1 - chosen["job_seconds"] / stored["job_seconds"])
    assert stored["job_seconds"] == planned(capsys, *arguments)["prediction"]["job_seconds"]
    assert formats["commands"] == [
        f"headrace quantize {checkpoint} -o DIR --weights int8",
        "headrace run-batch DIR -i IN.jsonl -o OUT.jsonl",
    ]
    assert any("arithmetic at one rate" in note for note in found["notes"])
    assert run(["plan", *arguments, "--formats", "any"]) == 0
    said = capsys.readouterr().out
    assert "formats: int8 weights, KV cache in f16; answers will differ" in said
    assert "formats" not in planned(capsys, *arguments)


def test_a_plan_for_weights_that_are_not_there_is_not_written(
    checkpoint, slow_memory, tmp_path, capsys
):
    plan = tmp_path / "plan.yaml"
    arguments = ["plan", str(checkpoint), *JOB, "--hardware", slow_memory, "-o", str(plan)]
    assert run([*arguments, "--formats", "int8"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--weights int8" in said
    assert "headrace plan DIR" in said
    assert not plan.exists()


def test_a_plan_with_another_kv_cache_is_written(checkpoint, slow_memory, tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    long = ("--prompt-len", "3000", "--gen-len", "200", "--requests", "4")
    arguments = (str(checkpoint), *long, "--hardware", slow_memory, "-o", str(plan))
    found = planned(capsys, *arguments, "--formats", "kv-int8")
    assert found["formats"]["commands"] == [
        f"headrace run-batch {checkpoint} -i IN.jsonl -o OUT.jsonl --kv-cache-dtype int8"
    ]
    assert yaml.safe_load(plan.read_text())["policy"]["kv_dtype"] == "int8"


def test_formats_of_a_known_model_name_its_repository(capsys):
    arguments = ("mixtral-8x7b", "--hardware", "t4", *JOB, "--formats", "int4")
    found = planned(capsys, *arguments)["formats"]
    assert found["weights"] == "int4"
    assert found["commands"][0].startswith("headrace quantize mistralai/Mixtral-8x7B")


def test_formats_that_do_not_exist_are_refused(checkpoint, capsys):
    assert run(["plan", str(checkpoint), "--formats", "fp8"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "any, or a list of int8, int4, kv-int8" in said
