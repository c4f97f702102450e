"""Sampling parameters are checked where they are made."""

from __future__ import annotations

import pytest

from headrace.errors import ParameterError
from headrace.specs.sampling import SamplingParams


def test_defaults_are_those_users_know():
    params = SamplingParams()
    assert (params.temperature, params.max_tokens, params.n, params.top_k) == (1.0, 16, 1, 0)


def test_a_single_stop_string_and_lists_become_tuples():
    params = SamplingParams(stop="END", stop_token_ids=[1, 2], allowed_token_ids=[3])
    assert params.stop == ("END",)
    assert params.stop_token_ids == (1, 2)
    assert params.allowed_token_ids == (3,)


def test_none_stands_for_nothing_as_in_vllm():
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"min_tokens": 17},
        {"logprobs": 21},
        {"stop": ("",)},
        {"allowed_token_ids": ()},
    ],
)
def test_values_out_of_range_name_the_parameter(fields):
    with pytest.raises(ParameterError, match=next(iter(fields))):
        SamplingParams(**fields)


def test_no_limit_on_max_tokens_allows_any_minimum():
    assert SamplingParams(max_tokens=None, min_tokens=500).min_tokens == 500
