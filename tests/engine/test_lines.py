"""Identity and parsing of single lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.lines import BadLine, JobLine, LineParser, identify


def parse(line: Any, **kwargs: Any) -> JobLine | BadLine:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return LineParser(**kwargs).parse(identify(raw), 3, 0)


def batch(body: Any = None, **fields: Any) -> dict[str, Any]:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    return line | {"body": body or {"messages": [{"role": "user", "content": "x"}]}} | fields


def test_a_batch_chat_line() -> None:
    line = parse(batch())
    assert isinstance(line, JobLine)
    assert (line.custom_id, line.number, line.plain, line.chat) == ("a", 3, False, True)
    assert line.messages == ({"role": "user", "content": "x"},)


def test_a_batch_completion_line() -> None:
    line = parse(batch({"prompt": "x", "max_tokens": 4}, url="/v1/completions"))
    assert isinstance(line, JobLine)
    assert (line.prompt, line.params.max_tokens, line.chat) == ("x", 4, False)


def test_plain_lines() -> None:
    line = parse({"id": 7, "prompt": "x", "temperature": 0.5}, defaults={"max_tokens": 8})
    assert isinstance(line, JobLine)
    assert (line.plain, line.custom_id, line.source) == (True, None, {"id": 7, "prompt": "x"})
    assert (line.params.temperature, line.params.max_tokens) == (0.5, 8)
    chat = parse({"messages": [{"role": "user", "content": "x"}]})
    assert isinstance(chat, JobLine)
    assert chat.chat


def test_spacing_and_order_do_not_change_the_key() -> None:
    a = identify(b'{"prompt":"x","n":1}')
    b = identify(b' { "n": 1, "prompt": "\\u0078" }\r\n')
    assert a.key(0) == b.key(0) != a.key(1)
    assert identify(b'{"prompt":"y","n":1}').key(0) != a.key(0)


def test_a_batch_key_is_custom_id_and_body() -> None:
    keys = {identify(json.dumps(line).encode()).key(0) for line in (
        batch(), batch(custom_id="b"), batch({"prompt": "x"})
    )}  # fmt: skip
    assert len(keys) == 3
    first = identify(json.dumps(batch()).encode())
    assert first.key(0) == first.key(5)


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b"[1]", "invalid_json", "object"),
        (b'{"prompt": NaN}', "invalid_json", "NaN"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "invalid_json", "not JSON"),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json", "deep"),
        (b'{"prompt": "\\ud800"}', "invalid_json", "surrogate"),
        (b'{"messages": [1e999]}', "invalid_json", "out of range"),
        (b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json", "deep"),
        (b'{"prompt": "a", "prompt": "b"}', "invalid_json", "stands twice"),
        (b'{"prompt": "\xff"}', "invalid_utf8", "UTF-8"),
        ({}, "invalid_request", "neither"),
        ({"prompt": "a", "messages": []}, "invalid_request", "both"),
        ({"prompt": "a", "id": [1]}, "invalid_request", "id"),
        ({"custom_id": "a"}, "invalid_request", "url"),
        (batch(custom_id=5), "invalid_request", "custom_id"),
        (batch(custom_id=""), "invalid_request", "custom_id"),
        (batch(method="GET"), "invalid_request", "method"),
        (batch(url="/v1/embeddings"), "invalid_request", "url"),
        (batch(url=[]), "invalid_request", "url"),
        (batch(body=[1]), "invalid_request", "body"),
        (batch(prompt="x"), "invalid_request", "prompt"),
        (batch({"messages": [], "stream": True}), "unsupported_parameter", "stream"),
        (batch({"prompt": "x", "messages": []}), "unsupported_parameter", "prompt"),
    ],
)
def test_a_line_at_fault_keeps_its_identity(line: Any, code: str, word: str) -> None:
    bad = parse(line)
    assert isinstance(bad, BadLine)
    assert (bad.error.code, bad.number) == (code, 3)
    assert word in str(bad.error)
    assert bad.key


def test_only_served_models_may_be_asked_for() -> None:
    body = {"prompt": "x", "model": "gpt"}
    assert isinstance(parse(body), JobLine)
    bad = parse(body, model_names={"mine"})
    assert isinstance(bad, BadLine)
    assert bad.error.code == "model_not_found"


TEXT = st.text("ab1é\ud800", max_size=4)
JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 2**70, 0.5, float("nan"), float("inf")]) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(
    (
        *("custom_id", "method", "url", "body", "prompt", "messages", "id", "n", "stop", "model"),
        *("logprobs", "top_logprobs", "seed", "stream", "logit_bias"),
    )
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)


@given(st.binary(max_size=60) | OBJECTS.map(lambda d: json.dumps(d).encode()))
def test_no_line_raises(raw: bytes) -> None:
    assert LineParser().parse(identify(raw), 1, 0).number == 1


@given(OBJECTS)
def test_no_body_raises(body: dict[str, Any]) -> None:
    for url in ("/v1/chat/completions", "/v1/completions"):
        parse(batch(body or None, url=url))
