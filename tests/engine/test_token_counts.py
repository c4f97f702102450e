"""Tokens counted without torch: as many as the tokenizer proper makes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headrace.cli.main import run
from headrace.engine.token_counts import TokenCounter
from headrace.errors import CheckpointError, ParameterError

TEXTS = ["Hello there", "", "a", "naïve — “quotes” 日本", " spaces   and\nlines "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "model"
    size = ("--layers", "1", "--hidden", "16", "--heads", "2", "--kv-heads", "1", "--width", "16")
    assert run(["bench", "make-checkpoint", str(path), *size, "--vocab", "300"]) == 0
    return path


def test_counts_are_those_of_the_tokenizer(folder):
    pytest.importorskip("transformers")
    from headrace.engine.tokenizer import Tokenizer

    counter, tokenizer = TokenCounter.load(folder), Tokenizer.load(folder)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": None},
    ]
    assert counter is not None
    try:
        assert [counter.count(t) for t in TEXTS] == [len(tokenizer.encode(t)) for t in TEXTS]
        assert counter.count_chat(chat) == len(tokenizer.encode_chat(chat))
    finally:
        counter.close()
        tokenizer.close()


def test_torch_is_not_imported(folder):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from headrace.engine.token_counts import TokenCounter\n"
        f"assert TokenCounter.load(Path({str(folder)!r})).count('a b') > 1\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_counted_is_said(tmp_path, folder):
    (tmp_path / "vocab.json").write_text("{}")
    assert TokenCounter.load(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError):
        TokenCounter.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    counter = TokenCounter.load(tmp_path)
    assert counter is not None
    with pytest.raises(ParameterError):
        counter.count_chat([{"role": "user", "content": "hi"}])
