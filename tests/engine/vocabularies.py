"""Tiny tokenizers of both kinds, built in memory."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from headrace.engine.pieces import byte_table

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'system']"
    " %}{{ raise_exception('only known roles') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level() -> Backend:
    """Byte-level BPE: 256 bytes, a few merges, <s> and </s>."""
    vocab = {c: i for i, c in enumerate(sorted(byte_table(), key=byte_table().__getitem__))}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r")]
    merges += [("S", "T"), ("O", "P"), ("ð", "Ł")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return _with_specials(backend)


def metaspace() -> Backend:
    """SentencePiece-like BPE with byte fallback, as Llama's."""
    vocab = {"<unk>": 0} | {f"<0x{b:02X}>": b + 1 for b in range(256)}
    letters = "▁ abcdefghijklmnopqrstuvwxyzSTOPH.,!"
    for letter in letters:
        vocab.setdefault(letter, len(vocab))
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "w"), ("▁", "hello")]
    merges += [("S", "T"), ("O", "P")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_specials(backend)


def _with_specials(backend: Backend) -> Backend:
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return backend


def save(backend: Backend, folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write the files of a checkpoint folder that concern the tokenizer."""
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
