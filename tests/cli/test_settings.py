"""Precedence of settings, and what a configuration file may hold."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.main import get_command

from headrace.cli import options
from headrace.cli.settings import (
    bind_environment,
    environment_name,
    leaves,
    read_config,
    settings_for,
    unknown_variables,
)
from headrace.errors import UsageError


@pytest.fixture
def command():
    """A tree of two commands; ``seen`` holds what the last one was called with."""
    app, group, seen = typer.Typer(), typer.Typer(), {}

    @app.command()
    def job(
        model: str,
        memory: options.Memory = None,
        seed: options.Seed = 0,
        max_num_seqs: options.MaxNumSeqs = None,
        fresh: Annotated[bool, typer.Option("--fresh/--no-fresh")] = False,
        stop: Annotated[list[str] | None, typer.Option("--stop")] = None,
        json: options.Json = False,
        config: options.Config = None,
    ) -> None:
        seen.update(locals())

    @group.command()
    def measure(
        batch: Annotated[int, typer.Option("--batch")] = 1,
        seed: options.Seed = 0,
        config: options.Config = None,
    ) -> None:
        seen.update(locals())

    app.add_typer(group, name="bench")
    root = get_command(app)
    bind_environment(root)

    def call(*arguments: str) -> dict[str, object]:
        seen.clear()
        root(list(arguments), standalone_mode=False)
        return dict(seen)

    call.root = root
    return call


@pytest.fixture
def config(tmp_path):
    """Write a configuration file; returns its path as text."""

    def write(text: str) -> str:
        path = tmp_path / "headrace.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_command_line_beats_environment_beats_file_beats_default(command, config, monkeypatch):
    file = config("seed: 3\n")
    assert command("job", "m")["seed"] == 0
    assert command("job", "m", "--config", file)["seed"] == 3
    monkeypatch.setenv("HEADRACE_SEED", "2")
    assert command("job", "m", "--config", file)["seed"] == 2
    assert command("job", "m", "--config", file, "--seed", "1")["seed"] == 1
    assert command("job", "m", "--seed", "1", "--config", file)["seed"] == 1


def test_environment_names_the_file_too(command, config, monkeypatch):
    monkeypatch.setenv("HEADRACE_CONFIG", config("max_num_seqs: 7\nmodel: here\n"))
    seen = command("job")
    assert (seen["max_num_seqs"], seen["model"]) == (7, "here")


def test_sections_hold_for_their_command_and_beat_the_top(command, config):
    file = config("seed: 1\njob: {seed: 2, memory: 600000000}\nbench: {measure: {batch: 64}}\n")
    seen = command("job", "m", "--config", file)
    assert (seen["seed"], seen["memory"]) == (2, "600000000")
    seen = command("bench", "measure", "--config", file)
    assert (seen["seed"], seen["batch"]) == (1, 64)


def test_flags_and_lists_and_nulls(command, config):
    file = config("fresh: true\nstop: [a, 7]\nseed: null\n")
    seen = command("job", "m", "--config", file)
    assert (seen["fresh"], seen["stop"], seen["seed"]) == (True, ["a", "7"], 0)
    assert command("job", "m", "--config", file, "--no-fresh")["fresh"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memroy: 1GB", "memory"),
        ("job: {batch: 1}", "job > batch"),
        ("bench: {seeed: 1}", "bench > seeed"),
        ("config: x", "unknown key"),
        ("measure: {batch: 1}", "is not a command"),
        ("- seed", "a mapping"),
        ("seed: [", "is not YAML"),
        ("seed: soon", "integer"),
    ],
)
def test_bad_file_is_refused_naming_the_key(command, config, text, message):
    with pytest.raises(Exception, match=message) as caught:
        command("job", "m", "--config", config(text))
    assert caught.value.exit_code == 2


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_config(tmp_path / "none.yaml")


def test_empty_file_is_fine(command, config):
    assert command("job", "m", "--config", config("# nothing\n"))["seed"] == 0


def test_keys_of_other_commands_are_allowed_at_the_top(command):
    assert settings_for(("job",), {"batch": 3, "seed": 1}, command.root, "f") == {"seed": "1"}


def test_variables_are_named_after_long_options(command):
    names = {environment_name(p) for leaf in leaves(command.root) for p in leaf.params}
    assert {"HEADRACE_MAX_NUM_SEQS", "HEADRACE_MODEL", "HEADRACE_STOP"} <= names


def test_misspelt_variables_are_found(command):
    environment = {"HEADRACE_SEED": "1", "HEADRACE_SEDE": "1", "HOME": "/"}
    assert unknown_variables(command.root, environment) == ["HEADRACE_SEDE"]
