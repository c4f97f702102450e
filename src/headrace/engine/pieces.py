"""What bytes a single token stands for, by the kind of its tokenizer's decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceBytes:
    """Bytes of vocabulary entries.

    Byte-level BPE spells bytes as printable characters (the table of GPT-2); SentencePiece-like
    vocabularies spell a space as U+2581 and single bytes as ``<0x0A>``.
    """

    def __init__(self, backend: Any, byte_level: bool) -> None:
        self._backend = backend
        self._table: Mapping[str, int] | None = byte_table() if byte_level else None
        self._added: frozenset[int] = frozenset(backend.get_added_tokens_decoder())

    @classmethod
    def of(cls, backend: Any) -> PieceBytes:
        """For a ``tokenizers.Tokenizer``; its decoder tells the kind."""
        decoder = json.loads(backend.to_str())["decoder"]
        return cls(backend, '"ByteLevel"' in json.dumps(decoder))

    def bytes_of(self, token: int) -> bytes:
        """Bytes of ``token``; empty for an id the vocabulary does not hold."""
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return str(piece).encode()
        if self._table is not None:
            return b"".join(
                bytes([self._table[c]]) if c in self._table else c.encode() for c in piece
            )
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace("\u2581", " ").encode()


def byte_table() -> dict[str, int]:
    """Character -> byte of byte-level BPE (Radford et al. 2019): printable bytes stand for
    themselves, the others follow from U+0100 in ascending order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
