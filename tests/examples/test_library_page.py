"""The Python in docs/library.md runs, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.cli.make_checkpoint import make_checkpoint, small_spec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
MODEL = "path/to/model"


def test_the_examples_of_the_library_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"layers": 2, "hidden": 64, "ffn_width": 96}
    make_checkpoint(small_spec("mixtral", "bf16", sizes), tmp_path / MODEL)
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "max_tokens": 3}\n')
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
