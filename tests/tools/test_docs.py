"""The documentation tool finds what is broken, and builds a page per module."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def docs(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("docs_tool", ROOT / "tools" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    package = tmp_path / "src" / "headrace"
    package.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", package)
    return module


def test_links_to_missing_files_and_headings_are_faults(docs, tmp_path):
    (tmp_path / "README.md").write_text(
        "# Top\n[a](docs/a.md) [b](docs/a.md#gone) [c](no.md) [d](#top)\n"
    )
    (tmp_path / "docs" / "a.md").write_text("# A b, c\n[self](#a-b-c) [far](https://example.com)\n")
    assert docs.broken_links() == [
        "README.md: no such heading: docs/a.md#gone",
        "README.md: no such file: no.md",
    ]


def test_public_names_without_docstring_are_faults(docs):
    (docs.PACKAGE / "__init__.py").write_text(
        '"""Top."""\ndef f(a: int) -> int: ...\ndef _g(): ...\n'
    )
    (docs.PACKAGE / "noun.py").write_text(
        '"""Noun."""\nclass A:\n    """A."""\n    def m(self): ...\n'
    )
    assert [line.split(": ")[1] for line in docs.undocumented()] == [
        "f has no docstring",
        "A.m has no docstring",
    ]
    assert docs.main(["check"]) == 1


def test_build_writes_a_page_per_module(docs, tmp_path):
    (docs.PACKAGE / "__init__.py").write_text(
        '"""Top."""\ndef f(a: int) -> int:\n    """Do f."""\n'
    )
    (tmp_path / "docs" / "index.md").write_text("# Home\n")
    assert docs.main(["build", str(tmp_path / "site")]) == 0
    assert "f(a: int) -> int" in (tmp_path / "site" / "api" / "headrace.md").read_text()
    assert docs.main([]) == 2
