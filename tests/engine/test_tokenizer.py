"""Loading, BOS, chat templates, ends of text, keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.engine.tokenizer import Tokenizer
from headrace.errors import CheckpointError, ParameterError, UnsupportedModelError

from . import vocabularies

MESSAGES = [{"role": "user", "content": "hello"}]


def test_encode_adds_bos_once(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("hello")
    assert plain[0] == tokenizer.bos_id
    assert tokenizer.encode("<s>hello").count(tokenizer.bos_id or 0) == 1
    assert tokenizer.decode(plain) == "hello"


def test_a_template_that_writes_bos_yields_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat(MESSAGES)
    assert ids[0] == tokenizer.bos_id
    assert ids.count(tokenizer.bos_id or 0) == 1
    assert tokenizer.render_chat(MESSAGES) == "<s>[user]hello</s>[assistant]"


def test_ids_pass_through_when_known(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(ParameterError, match="prompt token id"):
        tokenizer.encode([1, tokenizer.vocab_size])


def test_a_template_error_names_its_reason(tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterError, match="only known roles"):
        tokenizer.encode_chat([{"role": "alien", "content": "x"}])


def test_every_byte_of_a_text_is_in_its_tokens(tokenizer: Tokenizer) -> None:
    text = "hello world é 😀 <0x0"
    pieces = b"".join(tokenizer.token_bytes(t) for t in tokenizer.encode(text)[1:])
    assert pieces.decode().removeprefix(" ") == text.replace("<0x0", "<0x0")
    assert tokenizer.token_bytes(tokenizer.bos_id or 0) == b"<s>"
    assert tokenizer.token_bytes(10**6) == b""


def test_all_ends_of_text_count(tmp_path: Path) -> None:
    folder = vocabularies.save(vocabularies.byte_level(), tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    own = vocabularies.byte_level().token_to_id("</s>")
    assert Tokenizer.load(folder).eos_ids == {7, 8, 9, own}


@pytest.mark.parametrize("text", ['{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "{"])
def test_a_malformed_end_of_text_is_refused(tmp_path: Path, text: str) -> None:
    folder = vocabularies.save(vocabularies.byte_level(), tmp_path)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="generation_config"):
        Tokenizer.load(folder)


def test_no_tokenizer_file_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


def test_a_malformed_tokenizer_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises((UnsupportedModelError, CheckpointError)):
        Tokenizer.load(tmp_path)


def test_keys_change_with_content_and_template_only(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    a = Tokenizer.load(vocabularies.save(vocabularies.byte_level(), folders[0]))
    b = Tokenizer.load(vocabularies.save(vocabularies.byte_level(), folders[1]))
    c = Tokenizer.load(vocabularies.save(vocabularies.metaspace(), folders[2]))
    d = Tokenizer.load(vocabularies.save(vocabularies.byte_level(), folders[3], None))
    assert a.content_key() == b.content_key() != c.content_key()
    assert a.template_key() == c.template_key() != d.template_key() == ""
    with pytest.raises(ParameterError, match="chat template"):
        d.encode_chat(MESSAGES)
