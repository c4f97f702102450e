"""Text to token ids and back, from the files of a local checkpoint folder.

transformers reads the files, once they were looked over (``tokenizer_files``); it is imported
only when a tokenizer is loaded. Never remote code, never the network. Chat templates are
rendered in a process of their own (``chat_template``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.engine.chat_template import ChatTemplate
from headrace.engine.pieces import PieceBytes
from headrace.engine.tokenizer_files import check_files
from headrace.errors import (
    CheckpointError,
    HeadraceError,
    ParameterError,
    UnsupportedModelError,
)
from headrace.memory.headers import MAX_CONFIG_BYTES, read_json


class Tokenizer:
    """A checkpoint's tokenizer, its chat template and the ids that end a text."""

    def __init__(self, loaded: Any, eos_ids: frozenset[int], content_key: str) -> None:
        """Wrap a fast tokenizer of transformers; :meth:`load` is the usual way here."""
        self._loaded = loaded
        self._backend = loaded.backend_tokenizer
        self._backend.no_truncation()  # a file may ask for both, with any length
        self._backend.no_padding()
        self._content_key = content_key
        self._template = _template(loaded)
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
        found = check_files(folder)
        loaded = _load(folder)
        if not getattr(loaded, "is_fast", False):
            raise UnsupportedModelError(
                f"tokenizer of {folder.name}",
                expected="one with a tokenizer.json (a 'fast' tokenizer)",
                got=type(loaded).__name__,
            )
        with _faults_of(folder):
            own = loaded.eos_token_id
            return cls(loaded, _eos_ids(folder, own), _hash_files(folder, found))

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
        ids = self._ids(prompt, add_special_tokens=True)
        doubled = self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]
        return ids[1:] if doubled and prompt.startswith(self._loaded.bos_token) else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation through the chat template, ready for the answer.

        The template writes the special tokens; none is added. Raises ParameterError when there
        is no template or it refuses the messages.
        """
        return self._ids(self.render_chat(messages), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that :meth:`encode_chat` tokenizes."""
        if self._template is None:
            raise ParameterError(
                "messages need a chat template",
                got="a checkpoint without one",
                hint="send 'prompt' instead of 'messages'",
            )
        given = [{k: v for k, v in m.items() if v is not None} for m in messages]
        return self._template.render(given)

    def close(self) -> None:
        """End the process that renders chat templates, if there is one. Idempotent."""
        if self._template is not None:
            self._template.close()

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

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            if not _is_fault(error):
                raise
            raise ParameterError("the tokenizer refuses the text", got=str(error)[:200]) from error
        return ids

    def _checked(self, ids: Sequence[int]) -> list[int]:
        size = self.vocab_size
        for token in ids:
            if not 0 <= token < size:
                raise ParameterError("prompt token id", expected=f"0 to {size - 1}", got=token)
        return list(ids)


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer  # slow to import, so only here

    with _faults_of(folder):
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )


@contextmanager
def _faults_of(folder: Path) -> Iterator[None]:
    """Whatever the parsers of the libraries raise becomes a ModelError."""
    try:
        yield
    except HeadraceError:
        raise
    except BaseException as error:
        if not _is_fault(error):
            raise
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"the tokenizer of {folder.name} needs code from the checkpoint",
                hint="Headrace never runs it; use a checkpoint with a tokenizer.json",
            ) from error
        raise CheckpointError(
            f"tokenizer of {folder.name}",
            expected="files that transformers reads",
            got=f"{type(error).__name__}: {error}"[:300],
            hint="copy the tokenizer files of the original checkpoint into the folder",
        ) from error


def _is_fault(error: BaseException) -> bool:
    """Errors, and the panics of Rust libraries, which are no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _template(loaded: Any) -> ChatTemplate | None:
    """The template for plain conversations, where there is one."""
    source = loaded.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        return None
    name = Path(str(loaded.name_or_path)).name or "the tokenizer"
    return ChatTemplate(str(source), dict(loaded.special_tokens_map), name)


def _eos_ids(folder: Path, own: int | None) -> frozenset[int]:
    """Every id that ends a text: of the tokenizer, config.json and generation_config.json."""
    ids = set() if own is None else {own}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        value = read_json(path, MAX_CONFIG_BYTES).get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in values):
            raise CheckpointError(f"eos_token_id of {name}", expected="ids", got=str(value)[:80])
        ids.update(values)
    return frozenset(ids)


def _hash_files(folder: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
