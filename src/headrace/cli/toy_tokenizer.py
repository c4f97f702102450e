"""A small working tokenizer for checkpoints of random weights: bytes in, bytes out.

Every byte is a token, so any text can be encoded; ids beyond that decode to ``<7f3>``-like
marks, so that whatever a random model draws can be printed. Written as the plain JSON of
the ``tokenizers`` format, no library needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.engine.pieces import byte_table

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_tokenizer(folder: Path, vocab: int, context: int) -> None:
    """tokenizer.json and tokenizer_config.json for ids 0 .. vocab - 1 (``vocab`` >= 4).

    A vocabulary below 259 lacks some bytes, printable ASCII last; those become ``<unk>``.
    """
    _write(folder / "tokenizer.json", tokenizer_json(vocab))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "unk_token": UNKNOWN,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def tokenizer_json(vocab: int) -> dict[str, Any]:
    """The tokenizer: specials, byte characters, marks for the rest; no merges."""
    special = [UNKNOWN, BEGIN, END]
    marks = (f"<{i:x}>" for i in range(vocab))
    tokens = [*special, *byte_characters()][:vocab]
    tokens += [mark for mark, _ in zip(marks, range(vocab - len(tokens)), strict=False)]
    begin = {"SpecialToken": {"id": BEGIN, "type_id": 0}}
    sequence = {"id": "A", "type_id": 0}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": sequence}],
            "pair": [begin, {"Sequence": sequence}, {"Sequence": {**sequence, "id": "B"}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [1], "tokens": [BEGIN]}},
        },
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE, printable ASCII first."""
    characters = {byte: character for character, byte in byte_table().items()}
    first = [0x20, 0x0A, *range(0x21, 0x7F)]
    return [characters[b] for b in (*first, *(b for b in range(256) if b not in first))]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
