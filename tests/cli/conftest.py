"""A small checkpoint that the command line made, shared by the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.main import run

SMALL = ("--layers", "2", "--hidden", "32", "--heads", "4", "--kv-heads", "2", "--width", "48")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Tests see no HEADRACE_* variable but their own."""
    import os

    for name in [n for n in os.environ if n.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A Mixtral of 2 layers and 8 experts, float32, three shards or more."""
    folder = tmp_path_factory.mktemp("cli") / "mixtral"
    arguments = [*SMALL, "--vocab", "300", "--dtype", "f32", "--shard-size", "100KB"]
    assert run(["bench", "make-checkpoint", str(folder), *arguments]) == 0
    return folder
