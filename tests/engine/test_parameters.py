"""Bodies: what is accepted, what it becomes, what is refused and how."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.engine.parameters import messages_of, prompt_of, sampling_params
from headrace.errors import LineError


def params(chat: bool = False, defaults: dict[str, Any] | None = None, **body: Any) -> Any:
    return sampling_params(body, chat, defaults or {})


def test_every_parameter_reaches_its_field() -> None:
    body = {
        "max_tokens": 9, "temperature": 0, "top_p": 0.5, "n": 2, "stop": "x", "seed": -3,
        "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": 7}, "top_k": 4,
        "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True,
        "stop_token_ids": [7], "logprobs": 3, "model": "m", "user": "u", "metadata": {"a": "b"},
    }  # fmt: skip
    p = params(**body)
    assert (p.max_tokens, p.temperature, p.top_p, p.n, p.stop, p.seed) == (9, 0, 0.5, 2, ("x",), -3)
    assert (p.presence_penalty, p.frequency_penalty, p.logit_bias) == (1, -1, {5: 7.0})
    assert (p.top_k, p.min_p, p.repetition_penalty, p.min_tokens) == (4, 0.1, 1.2, 2)
    assert (p.ignore_eos, p.stop_token_ids, p.logprobs) == (True, (7,), 3)


def test_null_and_silence_take_the_defaults() -> None:
    p = params(temperature=None, stop=None, defaults={"max_tokens": 1024, "temperature": 0.3})
    assert (p.max_tokens, p.temperature, p.stop, p.logprobs) == (1024, 0.3, (), None)
    assert params(max_tokens=5, defaults={"max_tokens": 1024}).max_tokens == 5


def test_top_k_of_minus_one_is_no_limit() -> None:
    assert params(top_k=-1).top_k == 0


def test_chat_logprobs_are_a_switch_and_a_number() -> None:
    assert params(chat=True, logprobs=True).logprobs == 0
    assert params(chat=True, logprobs=True, top_logprobs=4).logprobs == 4
    assert params(chat=True, logprobs=False).logprobs is None


def test_both_names_of_max_tokens_work_if_they_agree() -> None:
    assert params(chat=True, max_completion_tokens=7).max_tokens == 7
    assert params(chat=True, max_completion_tokens=7, max_tokens=7).max_tokens == 7
    with pytest.raises(LineError, match="max_completion_tokens"):
        params(chat=True, max_completion_tokens=7, max_tokens=8)


def test_parameters_that_ask_for_nothing_pass() -> None:
    params(stream=False, echo=False, best_of=1)
    params(chat=True, stream=False, store=False, response_format={"type": "text"})


@pytest.mark.parametrize(
    ("chat", "body"),
    [
        (True, {"stream": True}),
        (True, {"tools": [{}]}),
        (True, {"response_format": {"type": "json_object"}}),
        (True, {"echo": False}),
        (True, {"prompt": "x"}),
        (False, {"echo": True}),
        (False, {"best_of": 2}),
        (False, {"best_of": True}),
        (False, {"suffix": "x"}),
        (False, {"max_completion_tokens": 3}),
        (False, {"temprature": 0.1}),
    ],
)
def test_what_cannot_be_honoured_is_named(chat: bool, body: dict[str, Any]) -> None:
    with pytest.raises(LineError, match=next(iter(body))) as caught:
        params(chat=chat, **body)
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": "hot"}, {"temperature": True}, {"temperature": -1},
        {"temperature": 10**400}, {"temperature": float("inf")}, {"n": 1.5}, {"n": 0},
        {"seed": 2**70}, {"stop": [1]},
        {"stop": ""}, {"stop": {}}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": 101}},
        {"logit_bias": [1]}, {"ignore_eos": 1}, {"stop_token_ids": 3}, {"stop_token_ids": ["a"]},
        {"logprobs": True}, {"logprobs": 21}, {"user": 3}, {"metadata": "x"}, {"max_tokens": 0},
        {"min_tokens": 20, "max_tokens": 5}, {"model": 3},
    ],
)  # fmt: skip
def test_a_bad_value_is_named(body: dict[str, Any]) -> None:
    with pytest.raises(LineError, match=next(iter(body))) as caught:
        params(**body)
    assert caught.value.code == "invalid_parameter"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("body", [{"logprobs": 3}, {"top_logprobs": 3}])
def test_bad_chat_logprobs_are_named(body: dict[str, Any]) -> None:
    with pytest.raises(LineError, match="logprobs"):
        params(chat=True, **body)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", "a"), ("", ""), (["a"], "a"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2))],
)
def test_a_prompt_is_text_or_ids(prompt: Any, expected: Any) -> None:
    assert prompt_of({"prompt": prompt}) == expected


@pytest.mark.parametrize("prompt", [None, [], [[]], ["a", "b"], [1, "a"], [True], 5, {"a": 1}])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(LineError, match="prompt"):
        prompt_of({"prompt": prompt})


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts, "refusal": None, "name": "n"}]
    assert messages_of({"messages": messages}) == (
        {"role": "user", "content": "a\nb", "name": "n"},
    )


@pytest.mark.parametrize(
    "messages",
    [
        None, [], "hi", ["hi"], [{"content": "x"}], [{"role": "user"}],
        [{"role": 1, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": 5}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
    ],
)  # fmt: skip
def test_any_other_messages_are_refused(messages: Any) -> None:
    with pytest.raises(LineError, match="messages"):
        messages_of({"messages": messages})
