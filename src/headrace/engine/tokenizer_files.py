"""The files of a tokenizer, looked over before any library opens them.

Tokenizer libraries trust their files: they follow links, read without bounds, and multiply
text as they are told (a dozen rules that double every character make 4096 of one).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import CheckpointError
from headrace.memory.folder import inside
from headrace.memory.headers import open_regular, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files that decide how text is split; their contents make the content key."""

MAX_BYTES = 128 << 20
"""Largest tokenizer file accepted; the largest published ones have about 35 MB."""

MAX_GROWTH = 256
"""Most that normalising, or decoding, may multiply the length of a text."""

_READ = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of the files that a tokenizer library may open."""


def check_files(folder: Path) -> list[str]:
    """Names of the tokenizer files in ``folder``. Raises CheckpointError when there is none,
    when one is a link that leaves the folder, is too large or is no JSON object, and when
    tokenizer.json multiplies text beyond MAX_GROWTH."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix in _READ or entry.name == "additional_chat_templates":
            inside(folder, entry.name)
    found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise CheckpointError(
            f"tokenizer of {folder.name}",
            expected="tokenizer.json (or tokenizer.model, or vocab.json)",
            got="no tokenizer file",
            hint="copy the tokenizer files of the original checkpoint into the folder",
        )
    for name in found:
        if name.endswith(".json"):
            content = read_json(folder / name, MAX_BYTES)
            if name == "tokenizer.json":
                _check_growth(content, folder)
        else:
            _check_size(folder / name)
    return found


def _check_size(path: Path) -> None:
    with open_regular(path) as (_, size):
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{path.name} is too large", expected=f"at most {MAX_BYTES} bytes", got=size
            )


def _check_growth(content: dict[str, Any], folder: Path) -> None:
    where = f"tokenizer.json of {folder.name}"
    for part in ("normalizer", "decoder"):
        factor = math.prod(min(_growth(step), 1e9) for step in _steps(content.get(part)))
        if factor > MAX_GROWTH:
            raise CheckpointError(
                f"{part} of {where} multiplies text",
                expected=f"at most {MAX_GROWTH} times its length",
                got=f"{factor:.3g} times",
                hint="use the tokenizer files of the original checkpoint",
            )
    copies = max((_copies(step) for step in _steps(content.get("post_processor"))), default=1)
    if copies > MAX_GROWTH:
        raise CheckpointError(
            f"post_processor of {where} repeats the text",
            expected=f"at most {MAX_GROWTH} times",
            got=copies,
        )


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    """The parts of a (nested) sequence of rules."""
    if isinstance(node, list):
        for part in node:
            yield from _steps(part)
    elif isinstance(node, dict):
        yield node
        for name in ("normalizers", "decoders", "processors", "pretokenizers"):
            yield from _steps(node.get(name))


def _growth(step: dict[str, Any]) -> float:
    """Characters that one character can become, at most. A pattern may match nothing, too."""
    if step.get("type") == "Replace":
        pattern, made = step.get("pattern"), float(_length(step.get("content")))
        return 1 + made if isinstance(pattern, dict) and "Regex" in pattern else max(1.0, made)
    if step.get("type") == "Prepend":
        return 1.0 + _length(step.get("prepend"))
    return 1.0


def _copies(step: dict[str, Any]) -> int:
    single = step.get("single")
    pieces = single if isinstance(single, list) else []
    return sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else 0
