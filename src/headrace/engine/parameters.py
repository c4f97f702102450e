"""The body of an OpenAI request, checked field by field. Nothing is ignored silently.

Accepted beside ``messages`` or ``prompt``: the parameters of ``ACCEPTED``. ``model``, ``user``
and ``metadata`` have no effect on the answer. A few others are accepted at the one value that
asks for nothing (``NEUTRAL``). null stands for an absent parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import LineError, ParameterError
from headrace.specs.sampling import SamplingParams

Body = Mapping[str, Any]
Message = dict[str, Any]


def sampling_params(body: Body, chat: bool, defaults: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters of a body; ``defaults`` (names of SamplingParams) fill the gaps.

    Raises LineError, code ``unsupported_parameter`` or ``invalid_parameter``.
    """
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(given, chat)
    values = {name: ACCEPTED[name](name, value) for name, value in given.items() if _known(name)}
    fields = dict(defaults)
    fields.update((name, values[name]) for name in _FIELDS if name in values)
    _set_max_tokens(fields, values)
    _set_logprobs(fields, given, chat)
    try:
        return SamplingParams(**fields)
    except ParameterError as error:
        raise LineError(str(error), code="invalid_parameter") from error


def prompt_of(body: Body) -> str | tuple[int, ...]:
    """The prompt of a completion: text, or token ids. A list of one prompt is that prompt."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_int(t) for t in prompt):
        return tuple(prompt)
    raise LineError(
        "prompt",
        code="invalid_parameter",
        expected="one text, or one non-empty list of token ids",
        got=_kind(prompt),
        hint="write several prompts as several lines",
    )


def messages_of(body: Body) -> tuple[Message, ...]:
    """The messages of a chat; text parts are joined by line breaks (as vLLM)."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "a non-empty list of objects", messages)
    return tuple(_message(f"messages[{i}]", m) for i, m in enumerate(messages))


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _invalid(where, "an object with a role", message)
    given = {name: value for name, value in message.items() if value is not None}
    if extra := sorted(set(given) - {"role", "content", "name"}):
        raise LineError(f"{where}.{extra[0]} is not supported", code="unsupported_parameter")
    content = given.get("content")
    if isinstance(content, list):
        content = "\n".join(_text_part(f"{where}.content[{i}]", p) for i, p in enumerate(content))
    if not isinstance(content, str):
        raise _invalid(f"{where}.content", "text", content)
    return given | {"content": content}


def _text_part(where: str, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise _invalid(where, 'a part of type "text"', part)


def _refuse_unknown(given: Body, chat: bool) -> None:
    other = _COMPLETION_ONLY if chat else _CHAT_ONLY
    for name, value in given.items():
        if name in NEUTRAL and name not in other:
            if value != NEUTRAL[name] or isinstance(value, bool) != isinstance(NEUTRAL[name], bool):
                raise LineError(
                    f"{name} is not supported", code="unsupported_parameter", got=repr(value)[:80]
                )
        elif not _known(name) or name in other:
            raise LineError(f"{name} is not supported", code="unsupported_parameter")


def _set_max_tokens(fields: dict[str, Any], values: Body) -> None:
    """``max_completion_tokens`` is the newer name of ``max_tokens``; both must agree."""
    newer, older = values.get("max_completion_tokens"), values.get("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise _invalid("max_tokens", f"the same as max_completion_tokens, {newer}", older)
    if newer is not None:
        fields["max_tokens"] = newer


def _set_logprobs(fields: dict[str, Any], given: Body, chat: bool) -> None:
    """Chat asks by a switch and a number, completions by the number alone."""
    value, top = given.get("logprobs"), given.get("top_logprobs")
    if not chat:
        if value is not None:
            fields["logprobs"] = _integer("logprobs", value)
        return
    if value is not None and not isinstance(value, bool):
        raise _invalid("logprobs", "true or false", value)
    if top is not None and not value:
        raise _invalid("top_logprobs", "logprobs: true beside it", value)
    if value:
        fields["logprobs"] = 0 if top is None else _integer("top_logprobs", top)


def _known(name: str) -> bool:
    return name in ACCEPTED


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    """What a value is, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{type(value).__name__}: {text[:76]} ..."


def _invalid(name: str, expected: str, got: Any) -> LineError:
    return LineError(name, code="invalid_parameter", expected=expected, got=_kind(got))


def _integer(name: str, value: Any) -> int:
    if not _is_int(value) or abs(value) >= 2**63:
        raise _invalid(name, "an integer of 64 bits", value)
    number: int = value
    return number


def _top_k(name: str, value: Any) -> int:
    """vLLM writes "no limit" as -1 as well as 0."""
    number = _integer(name, value)
    return 0 if number == -1 else number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9:
        raise _invalid(name, "a number", value)
    return float(value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, "true or false", value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid(name, "text", value)
    return value


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(name, "an object", value)
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise _invalid(name, "text or a list of texts", value)
    return tuple(values)


def _integers(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _invalid(name, "a list of integers", value)
    return tuple(_integer(name, v) for v in value)


def _bias(name: str, value: Any) -> dict[int, float]:
    biases: dict[int, float] = {}
    for token, bias in _object(name, value).items():
        if not (token.isascii() and token.isdigit() and len(token) < 19):
            raise _invalid(name, "token ids as keys", token)
        biases[int(token)] = _number(name, bias)
        if not -100 <= biases[int(token)] <= 100:
            raise _invalid(name, "values from -100 to 100", bias)
    return biases


def _checked_elsewhere(name: str, value: Any) -> Any:
    return value


Check = Callable[[str, Any], Any]

ACCEPTED: Mapping[str, Check] = {
    "model": _text,
    "messages": _checked_elsewhere,
    "prompt": _checked_elsewhere,
    "max_tokens": _integer,
    "max_completion_tokens": _integer,
    "temperature": _number,
    "top_p": _number,
    "n": _integer,
    "stop": _texts,
    "seed": _integer,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "logit_bias": _bias,
    "logprobs": _checked_elsewhere,
    "top_logprobs": _checked_elsewhere,
    "user": _text,
    "metadata": _object,
    "top_k": _top_k,
    "min_p": _number,
    "repetition_penalty": _number,
    "min_tokens": _integer,
    "ignore_eos": _switch,
    "stop_token_ids": _integers,
}
"""Parameters of a body and how each is checked."""

NEUTRAL: Mapping[str, Any] = {
    "stream": False,
    "store": False,
    "echo": False,
    "best_of": 1,
    "response_format": {"type": "text"},
}
"""Parameters that are accepted only at the value that changes nothing."""

_FIELDS = frozenset(SamplingParams.__dataclass_fields__) - {"logprobs"}
_CHAT_ONLY = frozenset({"messages", "max_completion_tokens", "top_logprobs", "response_format"})
_COMPLETION_ONLY = frozenset({"prompt", "echo", "best_of"})
