"""Answers in OpenAI's shapes."""

from __future__ import annotations

import math

from headrace.engine.bodies import answer_line, error_code, error_line, key_of
from headrace.engine.lines import BadLine, JobLine
from headrace.engine.outputs import CompletionOutput, RequestOutput, token_logprobs
from headrace.engine.sampler import SampledToken
from headrace.errors import HeadraceError, LineError, ParameterError
from headrace.specs.sampling import SamplingParams

PIECES = {1: b"he", 2: b"llo", 3: b"\xf0\x9f"}


def line(plain: bool = False, chat: bool = False, **params: object) -> JobLine:
    return JobLine(
        4,
        "k",
        None if plain else "c",
        plain,
        SamplingParams(**params),  # type: ignore[arg-type]
        prompt=None if chat else "p",
        messages=({"role": "user", "content": "p"},) if chat else None,
        source={"id": 9, "prompt": "p"} if plain else {},
    )


def output(choices: int = 1, top: tuple[tuple[int, float], ...] | None = None) -> RequestOutput:
    logprobs = None
    if top is not None:
        drawn = (SampledToken(1, -0.5, top), SampledToken(3, -math.inf, top))
        logprobs = tuple(token_logprobs(d, PIECES.__getitem__) for d in drawn)
    outputs = tuple(
        CompletionOutput(i, f"text {i}", (1, 3), "stop", logprobs=logprobs) for i in range(choices)
    )
    return RequestOutput("k", "p", (5, 6, 7), outputs)


def test_a_chat_answer() -> None:
    record = answer_line(line(chat=True, n=2), output(2), "mixtral", 1700)
    assert (record["id"], record["custom_id"], record["error"]) == ("batch_req_k", "c", None)
    assert (record["response"]["status_code"], record["response"]["request_id"]) == (200, "req_k")
    body = record["response"]["body"]
    assert (body["id"], body["object"], body["model"]) == (
        "chatcmpl-k",
        "chat.completion",
        "mixtral",
    )
    assert body["created"] == 1700
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert [c["index"] for c in body["choices"]] == [0, 1]
    assert body["choices"][1]["message"]["content"] == "text 1"
    assert body["choices"][1]["message"]["role"] == "assistant"
    assert body["choices"][1]["finish_reason"] == "stop"
    assert body["choices"][1]["logprobs"] is None


def test_a_completion_answer() -> None:
    body = answer_line(line(), output(), "m", 0)["response"]["body"]
    assert (body["id"], body["object"]) == ("cmpl-k", "text_completion")
    assert body["choices"][0]["text"] == "text 0"


def test_chat_logprobs() -> None:
    top = ((2, -0.25), (1, -0.5))
    body = answer_line(line(chat=True, logprobs=2), output(1, top), "m", 0)["response"]["body"]
    first, second = body["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("he", [104, 101], -0.5)
    assert [t["token"] for t in first["top_logprobs"]] == ["llo", "he"]
    assert (second["logprob"], second["bytes"]) == (-9999.0, [0xF0, 0x9F])
    assert len(second["top_logprobs"]) == 2


def test_completion_logprobs() -> None:
    body = answer_line(line(logprobs=1), output(1, ((2, -0.25),)), "m", 0)["response"]["body"]
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["he", "\ufffd"]
    assert logprobs["token_logprobs"] == [-0.5, -9999.0]
    assert logprobs["text_offset"] == [0, 2]
    assert logprobs["top_logprobs"][0] == {"he": -0.5, "llo": -0.25}


def test_zero_alternatives_leave_the_drawn_token() -> None:
    chat = answer_line(line(chat=True, logprobs=0), output(1, ()), "m", 0)["response"]["body"]
    assert chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    completion = answer_line(line(logprobs=0), output(1, ()), "m", 0)["response"]["body"]
    assert completion["choices"][0]["logprobs"]["top_logprobs"] is None


def test_a_plain_answer_repeats_its_question() -> None:
    record = answer_line(line(plain=True), output(), "m", 0)
    assert record == {
        "id": 9,
        "key": "k",
        "prompt": "p",
        "text": "text 0",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "error": None,
    }


def test_a_plain_answer_with_choices_and_logprobs() -> None:
    record = answer_line(line(plain=True, n=2, logprobs=1), output(2, ((2, -1.0),)), "m", 0)
    assert [c["text"] for c in record["choices"]] == ["text 0", "text 1"]
    assert len(record["logprobs"]) == 2


def test_errors_name_code_message_and_line() -> None:
    record = error_line(line(), LineError("too long", code="context_length_exceeded"))
    assert record["response"] is None
    assert record["error"] == {"code": "context_length_exceeded", "message": "too long", "line": 4}
    bad = BadLine(5, "k", None, True, LineError("no", code="invalid_json"))
    plain = error_line(bad, bad.error)
    assert (plain["id"], plain["key"], plain["text"], plain["usage"]) == (None, "k", None, None)
    assert "prompt" not in plain


def test_every_error_has_a_code() -> None:
    assert error_code(ParameterError("x")) == "invalid_parameter"
    assert error_code(HeadraceError("x")) == "server_error"


def test_keys_are_found_in_output_lines() -> None:
    assert key_of(answer_line(line(), output(), "m", 0)) == "k"
    assert key_of(answer_line(line(plain=True), output(), "m", 0)) == "k"
    assert key_of({"id": "other"}) is None
