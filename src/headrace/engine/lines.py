"""One line of a batch file: OpenAI's batch request, or a plain object with a prompt.

Parsing has two stages. :func:`identify` finds what names the line (its hash, its custom_id),
cheaply; :class:`LineParser` checks everything else. A line at fault keeps its identity, so that
its error line can be written and recognised again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.engine.parameters import Message, messages_of, prompt_of, sampling_params
from headrace.errors import LineError
from headrace.memory.headers import depth_of, finite_float, refuse_constant
from headrace.specs.sampling import SamplingParams

URLS: Mapping[str, bool] = {"/v1/chat/completions": True, "/v1/completions": False}
"""Routes a batch line may name -> whether it is a chat."""

DEEPEST = 64
"""Levels of nesting that a line may have."""

_BATCH_FIELDS = frozenset({"custom_id", "method", "url", "body"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What names a line. ``content`` is None, and ``error`` set, when it is no JSON object.

    ``digest`` is a hash of the parsed object, so spacing and the order of keys do not matter;
    of the raw bytes when they do not parse.
    """

    digest: bytes
    plain: bool
    custom_id: str | None = None
    content: Mapping[str, Any] | None = None
    error: LineError | None = None

    def key(self, occurrence: int) -> str:
        """Key of the line; ``occurrence`` counts equal lines before it (batch lines: none)."""
        name = self.digest.hex()
        return name if self.custom_id is not None else f"{name}-{occurrence}"


@dataclass(frozen=True, slots=True)
class JobLine:
    """A request, checked as far as possible without the model.

    ``source`` holds the ``id`` and the ``prompt`` or ``messages`` that a plain line's output
    repeats. Exactly one of ``prompt`` and ``messages`` is set.
    """

    number: int
    key: str
    custom_id: str | None
    plain: bool
    params: SamplingParams
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        """Whether the answer is a chat message."""
        return self.messages is not None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that costs itself only: it becomes an error line."""

    number: int
    key: str
    custom_id: str | None
    plain: bool
    error: LineError
    source: Mapping[str, Any] = field(default_factory=dict)


def identify(raw: bytes) -> Identity:
    """Name a line. Never raises: a line that does not parse says so in ``error``."""
    try:
        content = _parse(raw)
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    except LineError as error:
        return Identity(_digest(raw.strip()), plain=False, error=error)
    except (UnicodeEncodeError, RecursionError):
        fault = LineError("not JSON: half a surrogate pair, or too deep", code="invalid_json")
        return Identity(_digest(raw.strip()), plain=False, error=fault)
    custom_id = content.get("custom_id")
    return Identity(
        _digest(canonical),
        plain=not _BATCH_FIELDS & content.keys(),
        custom_id=custom_id if isinstance(custom_id, str) and custom_id else None,
        content=content,
    )


@dataclass(frozen=True, slots=True)
class LineParser:
    """Checks identified lines.

    ``defaults`` are sampling parameters where a line is silent. ``model_names``, unless None,
    are the only values that ``model`` may have.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    model_names: Collection[str] | None = None

    def parse(self, identity: Identity, number: int, occurrence: int) -> JobLine | BadLine:
        """The request of line ``number`` (from 1), or what is wrong with it."""
        key, custom_id = identity.key(occurrence), identity.custom_id
        content = identity.content or {}
        source = {n: content[n] for n in ("id", "prompt", "messages") if n in content}
        try:
            if identity.error is not None:
                raise identity.error
            body, chat = _plain_body(content) if identity.plain else _batch_body(content)
            self._check_model(body)
            return JobLine(
                number,
                key,
                custom_id,
                identity.plain,
                sampling_params(body, chat, self.defaults),
                prompt=None if chat else prompt_of(body),
                messages=messages_of(body) if chat else None,
                source=source,
            )
        except LineError as error:
            return BadLine(number, key, custom_id, identity.plain, error, source)

    def _check_model(self, body: Mapping[str, Any]) -> None:
        model = body.get("model")
        if model is None or self.model_names is None or model in self.model_names:
            return
        names = ", ".join(sorted(self.model_names))
        raise LineError("model", code="model_not_found", expected=names, got=repr(model)[:80])


def _batch_body(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The body of a batch line, and whether it is a chat."""
    custom_id = content.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("custom_id", expected="a non-empty text", got=repr(custom_id)[:80])
    if extra := sorted(content.keys() - _BATCH_FIELDS):
        raise LineError(
            f"{extra[0]} stands beside the body", expected=", ".join(sorted(_BATCH_FIELDS))
        )
    if content.get("method", "POST") != "POST":
        raise LineError("method", expected="POST", got=repr(content["method"])[:80])
    url, body = content.get("url"), content.get("body")
    if not isinstance(url, str) or url not in URLS:
        raise LineError("url", expected=" or ".join(URLS), got=repr(url)[:80])
    if not isinstance(body, dict):
        raise LineError("body", expected="an object", got=type(body).__name__)
    return body, URLS[url]


def _plain_body(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """A plain line is its own body; ``id`` is not part of it."""
    chat = content.get("messages") is not None
    if chat == (content.get("prompt") is not None):
        raise LineError(
            "a line needs one prompt",
            expected="either prompt or messages (or custom_id, method, url and body)",
            got="both" if chat else "neither",
        )
    if not isinstance(content.get("id"), str | int | None):
        raise LineError("id", expected="text or an integer", got=repr(content["id"])[:80])
    return {n: v for n, v in content.items() if n != "id"}, chat


def _parse(raw: bytes) -> Mapping[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: {error.reason}", code="invalid_utf8") from error
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=refuse_constant,
            parse_float=finite_float,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise LineError(f"not JSON: {reason}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise LineError(
            "a line must be a JSON object", code="invalid_json", got=type(content).__name__
        )
    if depth_of(content, DEEPEST) > DEEPEST:  # it is written again, from deeper in the stack
        raise LineError("nested too deeply", code="invalid_json", expected=f"{DEEPEST} levels")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
