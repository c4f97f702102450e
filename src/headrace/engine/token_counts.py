"""How many tokens a prompt has, without torch: for plans, which must start quickly.

The tokenizer proper (``tokenizer``) is read by transformers, which imports torch. Counting needs
no more than tokenizer.json and the chat template; what transformers settles beside them (a BOS
written twice) is a token at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.engine.chat_template import ChatTemplate
from headrace.engine.tokenizer_files import check_files
from headrace.errors import CheckpointError, ParameterError
from headrace.memory.folder import inside
from headrace.memory.headers import MAX_CONFIG_BYTES, open_regular, read_json

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TokenCounter:
    """Counts tokens as the tokenizer of a checkpoint folder would make them."""

    def __init__(self, backend: Any, template: ChatTemplate | None) -> None:
        """Use :meth:`load`."""
        self._backend = backend
        self._template = template

    @classmethod
    def load(cls, folder: Path) -> TokenCounter | None:
        """None where the folder has no tokenizer.json: only transformers could read it.

        Raises CheckpointError when the files are malformed."""
        if "tokenizer.json" not in check_files(folder):
            return None
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except BaseException as error:  # a panic of the library is no Exception
            if not _is_fault(error):
                raise
            raise CheckpointError(f"tokenizer of {folder.name}", got=str(error)[:200]) from error
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, _template(folder))

    def count(self, text: str) -> int:
        """Tokens of a prompt, special ones added. Raises ParameterError."""
        return self._count(text, special=True)

    def count_chat(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a conversation through the chat template. Raises ParameterError."""
        if self._template is None:
            raise ParameterError("messages need a chat template", got="a checkpoint without one")
        given = [{k: v for k, v in m.items() if v is not None} for m in messages]
        return self._count(self._template.render(given), special=False)

    def close(self) -> None:
        """End the process that renders chat templates, if there is one. Idempotent."""
        if self._template is not None:
            self._template.close()

    def _count(self, text: str, special: bool) -> int:
        try:
            return len(self._backend.encode(text, add_special_tokens=special).ids)
        except BaseException as error:
            if not _is_fault(error):
                raise
            raise ParameterError("the tokenizer refuses the text", got=str(error)[:200]) from error


def _is_fault(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _template(folder: Path) -> ChatTemplate | None:
    """The template of the folder: a file of its own, or a field of tokenizer_config.json."""
    place = inside(folder, "tokenizer_config.json")
    config = read_json(place, MAX_CONFIG_BYTES) if place.exists() else {}
    source = _file_text(folder, "chat_template.jinja") or config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if not isinstance(source, str) or not source:
        return None
    found = {name: _content(config.get(name)) for name in _NAMES}
    tokens = {name: value for name, value in found.items() if value is not None}
    return ChatTemplate(source, tokens, folder.name)


def _content(token: Any) -> str | None:
    """A special token is text, or an object that holds it."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _file_text(folder: Path, name: str) -> str | None:
    path = inside(folder, name)
    if not path.exists():
        return None
    with open_regular(path) as (_, size):
        if size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{name} is too large", expected=f"at most {MAX_CONFIG_BYTES} bytes", got=size
            )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {name}", got=str(error)[:200]) from error
