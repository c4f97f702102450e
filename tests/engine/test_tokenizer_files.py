"""Tokenizer files are looked over before a library opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.tokenizer import Tokenizer
from headrace.engine.tokenizer_files import check_files
from headrace.errors import CheckpointError, ModelError

from . import vocabularies

DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
MATCH = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "b" * 20}
COPIES = [{"Sequence": {"id": "A", "type_id": 0}}] * 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return vocabularies.save(vocabularies.byte_level(), tmp_path)


def change(folder: Path, **parts: Any) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 9}}, "512 times"),
        ({"normalizer": {"type": "Sequence", "normalizers": [MATCH] * 2}}, "441 times"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 400}}, "401 times"),
        ({"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 300}}, "decoder"),
        ({"post_processor": {"type": "TemplateProcessing", "single": COPIES}}, "repeats the text"),
    ],
)
def test_rules_that_multiply_text_are_refused(folder: Path, parts: Any, message: str) -> None:
    change(folder, **parts)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(folder)


def test_rules_that_published_tokenizers_have_pass(folder: Path) -> None:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    change(folder, normalizer={"type": "Sequence", "normalizers": [space, DOUBLE, MATCH]})
    assert "tokenizer.json" in check_files(folder)


def test_a_text_is_neither_padded_nor_cut_whatever_the_file_says(folder: Path) -> None:
    whole = Tokenizer.load(folder).encode("hello world, hello")
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}  # fmt: skip
    change(folder, padding=padding)
    assert Tokenizer.load(folder).encode("hello world, hello") == whole
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    change(folder, truncation=cut, padding=None)
    assert Tokenizer.load(folder).encode("hello world, hello") == whole


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "x.jinja", "a.model"])
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        Tokenizer.load(folder)


def test_a_path_in_a_file_is_not_followed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = vocabularies.save(vocabularies.metaspace(), elsewhere) / "tokenizer.json"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    paths = dict.fromkeys(("tokenizer_file", "vocab_file", "merges_file"), str(other))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | paths))
    assert Tokenizer.load(folder).vocab_size == vocabularies.byte_level().get_vocab_size()


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1, "a": 2}', '{"a":' * 5000, "[]", "\0"])
def test_odd_json_is_refused(folder: Path, text: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        before = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(text)
        with pytest.raises(ModelError):
            Tokenizer.load(folder)
        (folder / name).write_text(before)


def test_files_beyond_all_measure_are_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        with (folder / name).open("ab") as file:
            file.truncate(1 << 30)
        with pytest.raises(CheckpointError, match="too large"):
            check_files(folder)
        (folder / name).unlink()
