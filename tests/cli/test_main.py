"""Start-up, exit codes, and the habits that all commands share."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

import headrace
from headrace.cli.main import make_command, run
from headrace.cli.settings import leaves
from tests.cli.helpers import SOURCE, run_process

HEAVY = (
    *("torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "jinja2", "yaml"),
    *("pydantic", "asyncio", "concurrent.futures", "multiprocessing"),
    *("headrace.planner.simulate", "headrace.machines.threads", "headrace.engine.llm"),
)
"""What no quick command needs, and what would cost it tens of milliseconds or seconds."""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["inspect", "mixtral-8x7b"], ["inspect", "LOCAL"]]
)
def test_starts_fast_and_without_heavy_imports(arguments, checkpoint):
    arguments = [str(checkpoint) if a == "LOCAL" else a for a in arguments]
    program = (
        "import sys; from headrace.cli.main import run; code = run(sys.argv[1:]);"
        f"loaded = [m for m in {HEAVY} if m in sys.modules];"
        "print(loaded, file=sys.stderr); sys.exit(code)"
    )
    before = cpu_seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": SOURCE, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "[]"
    # About 0.2 s on an idle machine. CPU time, and loosely: test machines are slow and busy.
    assert cpu_seconds_of_children() - before < 3


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {headrace.__version__}\n"


def test_every_command_explains_itself(capsys):
    for command in leaves(make_command()):
        assert command.help
        options = [p for p in command.params if p.param_type_name == "option"]
        assert {"json", "config", "verbose"} <= {o.opts[0].lstrip("-") for o in options}


def test_unknown_command_and_option_exit_2(capsys):
    assert run(["no-such-command"]) == 2
    assert run(["inspect", "--no-such-option"]) == 2
    assert run(["inspect"]) == 2


def test_refusal_exits_with_the_errors_own_code_and_says_what_to_try(capsys):
    assert run(["inspect", "mixtral-8x8"]) == 2
    error = capsys.readouterr().err
    assert "expected:" in error
    assert "try: mixtral-8x7b" in error


@pytest.mark.parametrize("variable", [False, True])
def test_refusal_is_json_when_json_was_asked_for(variable, monkeypatch, capsys):
    if variable:
        monkeypatch.setenv("HEADRACE_JSON", "true")
    assert run(["inspect", "mixtral-8x8", *([] if variable else ["--json"])]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UsageError"
    assert error["got"] == "mixtral-8x8"


def test_verbose_adds_the_traceback(capsys):
    run(["inspect", "mixtral-8x8", "-v"])
    assert "Traceback" in capsys.readouterr().err


def test_file_instead_of_folder_is_refused_with_its_folder(checkpoint, capsys):
    assert run(["inspect", str(checkpoint / "config.json")]) == 2
    assert f"try: {checkpoint}" in capsys.readouterr().err
    assert run(["inspect", "./nowhere"]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err


def test_misspelt_variable_is_mentioned(monkeypatch, capsys):
    monkeypatch.setenv("HEADRACE_MEMROY", "1GB")
    run(["--version"])
    assert "HEADRACE_MEMROY" in capsys.readouterr().err


def test_whole_process_prints_and_exits():
    assert run_process("--version").stdout.startswith("headrace ")
    refused = run_process("inspect", "nothing-like-it", NO_COLOR="1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")


def test_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m headrace inspect mixtral-8x7b | true"
    done = subprocess.run(
        command, shell=True, env={"PYTHONPATH": SOURCE}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
