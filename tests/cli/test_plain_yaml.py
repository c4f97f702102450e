"""Only the plain part of YAML is read, and at no cost that a small file could run up."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from headrace.cli.plain_yaml import NotPlainError, load_plain
from headrace.cli.settings import read_config
from headrace.errors import UsageError

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "a: [1, 'x', null]\nb:\n  c: true\n", "- 1\n- {a: b}", "a: 1.5", "# only", "7"],
)
def test_plain_documents_are_read_as_yaml_reads_them(text: str) -> None:
    assert load_plain(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "anchors"),
        ("a: &a [*a]", "anchors"),
        ("a: 1\nb: 2\na: 3", "stands twice"),
        ("? [a, b]\n: 1", "no text"),
        ("[" * 3000, "levels deep"),
        ("- " * 500, "levels deep"),
        ("a: " + "9" * 5000, "a number of more than"),
        ("a: 0x" + "f" * 5000, "a number of more than"),
        ("a: 2001-99-99", "month"),
        ("a: !!python/name:os.system", "constructor"),
        ("a: !!binary x", "base64"),
        ("\0", "unacceptable character"),
        ("--- 1\n--- 2", "single document"),
        ("a: b: c", "mapping values"),
        ("a: [", "expected"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, message: str) -> None:
    with pytest.raises(NotPlainError, match=message):
        load_plain(text)


@pytest.mark.parametrize("content", [b"\xff", b"a: &a 1\nb: *a", b"x" * 20_000, b"[1]"])
def test_a_file_that_is_no_configuration_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_config(tmp_path / "c.yaml")
