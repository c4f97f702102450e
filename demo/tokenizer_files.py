"""Rebuild Hugging Face tokenizer files from a GGUF's fields, so that text splits as it did.

The pre-tokenizer's name, ``tokenizer.ggml.pre``, decides how text is cut before byte-pair merges.
For ``smollm`` each Unicode number character stands alone, and what lies between is cut by GPT-2's
expression: `Digits(individual_digits=True)` followed by `ByteLevel`.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from demo.gguf_source import GgufSource

CONTROL, USER_DEFINED = 3, 4


def build_tokenizer(source: GgufSource) -> Tokenizer:
    """The fast tokenizer, with control tokens special and nothing added in front."""
    kind = (source.field("tokenizer.ggml.model"), source.field("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise SystemExit(f"expected a gpt2 tokenizer that splits as smollm, got {kind}")
    tokens = source.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in source.field("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = source.field("tokenizer.ggml.token_type")
    for token, kind_of in zip(tokens, types, strict=True):
        if kind_of in (CONTROL, USER_DEFINED):
            tokenizer.add_special_tokens([AddedToken(token, special=kind_of == CONTROL)])
    return tokenizer


def write_tokenizer(source: GgufSource, tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json."""
    tokens = source.field("tokenizer.ggml.tokens")
    ids = {
        name: source.field(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    special = {f"{name}_token": tokens[index] for name, index in ids.items()}
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "add_bos_token": bool(source.field("tokenizer.ggml.add_bos_token", False)),
            "clean_up_tokenization_spaces": False,
            "model_max_length": source.settings.context,
            "chat_template": source.field("tokenizer.chat_template"),
            **special,
        },
    )
    _write(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["eos"],
            "pad_token_id": ids["pad"],
        },
    )


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
