"""Text to token ids and back, from the files of a local checkpoint folder.

transformers reads the files and renders chat templates (in its sandbox); it is imported only
when a tokenizer is loaded. Never remote code, never the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.engine.pieces import PieceBytes
from headrace.errors import CheckpointError, ParameterError, UnsupportedModelError

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


class Tokenizer:
    """A checkpoint's tokenizer, its chat template and the ids that end a text."""

    def __init__(self, loaded: Any, eos_ids: frozenset[int], content_key: str) -> None:
        """Wrap a fast tokenizer of transformers; :meth:`load` is the usual way here."""
        self._loaded = loaded
        self._backend = loaded.backend_tokenizer
        self._content_key = content_key
        self._pieces = PieceBytes.of(self._backend)
        self.eos_ids = eos_ids
        self.bos_id: int | None = loaded.bos_token_id
        self.special_ids = frozenset(
            token for token, added in self._backend.get_added_tokens_decoder().items()
            if added.special
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder.

        Raises CheckpointError when files are missing or malformed, UnsupportedModelError when
        only code from the checkpoint, or a slow tokenizer, could read them.
        """
        folder = Path(folder)
        found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
        if not found:
            raise CheckpointError(
                f"tokenizer of {folder.name}",
                expected="tokenizer.json (or tokenizer.model, or vocab.json)",
                got="no tokenizer file",
                hint="copy the tokenizer files of the original checkpoint into the folder",
            )
        loaded = _load(folder)
        if not getattr(loaded, "is_fast", False):
            raise UnsupportedModelError(
                f"tokenizer of {folder.name}",
                expected="one with a tokenizer.json (a 'fast' tokenizer)",
                got=type(loaded).__name__,
            )
        return cls(loaded, _eos_ids(folder, loaded.eos_token_id), _hash_files(folder, found))

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included. The model's table may be larger."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt, special tokens added as the checkpoint does.

        A prompt that already begins with BOS does not get a second one. Ids pass through,
        checked to be known: ParameterError otherwise.
        """
        if not isinstance(prompt, str):
            return self._checked(prompt)
        ids: list[int] = self._backend.encode(prompt, add_special_tokens=True).ids
        doubled = self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]
        return ids[1:] if doubled and prompt.startswith(self._loaded.bos_token) else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation through the chat template, ready for the answer.

        The template writes the special tokens; none is added. Raises ParameterError when there
        is no template or it refuses the messages.
        """
        text = self.render_chat(messages)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that :meth:`encode_chat` tokenizes."""
        if not self._loaded.chat_template:
            raise ParameterError(
                "messages need a chat template",
                got="a checkpoint without one",
                hint="send 'prompt' instead of 'messages'",
            )
        try:
            text = self._loaded.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # template code may raise anything
            raise ParameterError(f"the chat template refuses the messages: {error}") from error
        return str(text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids`` as one piece; incomplete characters become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, also when it is a part of a character."""
        return self._pieces.bytes_of(token)

    def content_key(self) -> str:
        """Hash of the tokenizer's files; part of a run's signature."""
        return self._content_key

    def template_key(self) -> str:
        """Hash of the chat template ('' without one); part of a run's signature."""
        template = self._loaded.chat_template
        if not template:
            return ""
        text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _checked(self, ids: Sequence[int]) -> list[int]:
        size = self.vocab_size
        for token in ids:
            if not 0 <= token < size:
                raise ParameterError("prompt token id", expected=f"0 to {size - 1}", got=token)
        return list(ids)


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer  # slow to import, so only here

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # transformers raises whatever its parsers do
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"the tokenizer of {folder.name} needs code from the checkpoint",
                hint="Headrace never runs it; use a checkpoint with a tokenizer.json",
            ) from error
        raise CheckpointError(f"tokenizer of {folder.name}: {error}") from error


def _eos_ids(folder: Path, own: int | None) -> frozenset[int]:
    """Every id that ends a text: of the tokenizer, config.json and generation_config.json."""
    ids = set() if own is None else {own}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{name} of {folder.name}: {error}") from error
        value = config.get("eos_token_id") if isinstance(config, dict) else None
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in values):
            raise CheckpointError(f"eos_token_id of {name}", expected="ids", got=value)
        ids.update(values)
    return frozenset(ids)


def _hash_files(folder: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
