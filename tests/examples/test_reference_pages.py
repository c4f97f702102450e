"""What docs/ says exists, exists; what a user meets is said."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from headrace.cli.main import make_command
from headrace.cli.settings import leaves
from headrace.engine.parameters import ACCEPTED, NEUTRAL
from headrace.engine.summary import RunSummary
from headrace.specs.policy import SCHEDULES
from headrace.specs.sampling import SamplingParams

DOCS = Path(__file__).resolve().parents[2] / "docs"
USED = ["commands.md", "batch-files.md", "library.md", "planning.md", "reading-traces.md"]


def flags() -> set[str]:
    """Every option of every command that help shows, both ways of a switch, and click's own."""
    shown = [p for leaf in leaves(make_command()) for p in leaf.params if not _hidden(p)]
    options = {o for p in shown for o in (*p.opts, *_off(p))}
    return options | {"--help", "--version", "--install-completion"}


def _hidden(parameter) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _off(parameter) -> list[str]:
    return list(getattr(parameter, "secondary_opts", ()))


@pytest.mark.parametrize("page", USED)
def test_every_flag_that_a_page_names_exists(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", (DOCS / page).read_text()))
    assert named <= flags()


def test_every_flag_is_named_somewhere():
    said = "".join((DOCS / page).read_text() for page in USED)
    long = {f for f in flags() if f.startswith("--")}
    known_by_their_switch = {"--chat", "--compare", "--verbose", "--help", "--version"}
    by_letter = {"--input", "--output"}
    assert {f for f in long if f not in said} <= known_by_their_switch | by_letter


def test_every_field_of_the_summary_is_explained():
    said = (DOCS / "commands.md").read_text()
    assert [f.name for f in fields(RunSummary) if f"`{f.name}`" not in said] == []


def test_every_parameter_of_a_batch_line_is_explained():
    said = (DOCS / "batch-files.md").read_text()
    assert [name for name in (*ACCEPTED, *NEUTRAL) if f"`{name}`" not in said] == []


def test_every_sampling_parameter_is_explained():
    said = (DOCS / "library.md").read_text()
    assert [f.name for f in fields(SamplingParams) if f"`{f.name}`" not in said] == []


def test_every_schedule_is_explained():
    said = (DOCS / "planning.md").read_text()
    assert [name for name in SCHEDULES if f"`{name}`" not in said] == []


def test_every_decision_is_listed():
    said = (DOCS / "index.md").read_text()
    assert [p.name for p in (DOCS / "decisions").glob("*.md") if p.name not in said] == []
