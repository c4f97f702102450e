"""Sets of pages as text: short, and the same when read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DocumentError
from headrace.planner.page_sets import compact, expand


@given(st.frozensets(st.integers(0, 400)))
def test_what_is_written_is_read_back(pages):
    assert expand(compact(pages), 401) == pages


def test_runs_and_steps_are_short():
    assert compact([]) == ""
    assert compact([7]) == "7"
    assert compact([1, 2]) == "1 2"
    assert compact([*range(13), 15, *range(20, 41, 4)]) == "0-12 15 20-40/4"


def test_a_single_number_of_yaml_counts():
    assert expand(5, 6) == {5}


@pytest.mark.parametrize(
    "text",
    [
        "6",
        "3-1",
        "0-6",
        "0-5/0",
        "1 1",
        "0-4 2",
        "-1",
        "a",
        "1,2",
        "0-99999999999",
        None,
        True,
        [1],
    ],
)
def test_what_is_no_set_of_the_model_is_refused(text):
    with pytest.raises(DocumentError):
        expand(text, 6)
