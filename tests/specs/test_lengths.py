"""Lengths as people write them: read or refused, and drawn the same way every time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.specs.lengths import LengthRange
from headrace.specs.workload import Workload


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("128", 128, 128), ("32-512", 32, 512), (" 7 - 9 ", 7, 9), ("5-5", 5, 5), ("007", 7, 7)],
)
def test_a_number_or_a_range_is_read(text, low, high):
    assert LengthRange.parse(text, "--gen-len") == LengthRange(low, high)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "32-512"),
        ("many", "32-512"),
        ("-5", "32-512"),
        ("5-", "32-512"),
        ("1-2-3", "32-512"),
        ("1.5", "32-512"),
        ("٣", "32-512"),
        ("1" * 400, "32-512"),
        ("512-32", "try: --gen-len 32-512"),
        ("0", "at least 1 token"),
        ("0-8", "at least 1 token"),
    ],
)
def test_anything_else_is_refused_with_what_to_type(text, said):
    with pytest.raises(UsageError) as refusal:
        LengthRange.parse(text, "--gen-len")
    assert "--gen-len" in str(refusal.value)
    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert refusal.value.exit_code == 2


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 50), st.integers())
def test_draws_lie_in_the_range_and_depend_on_the_seed_alone(low, more, count, seed):
    wanted = LengthRange(low, low + more)
    found = wanted.draw(count, Random(seed))
    assert len(found) == count
    assert all(low <= n <= low + more for n in found)
    assert found == wanted.draw(count, Random(seed))


def test_every_length_is_as_likely_as_any_other_ends_included():
    found = LengthRange(3, 6).draw(8000, Random(1))
    counts = {n: found.count(n) for n in set(found)}
    assert counts.keys() == {3, 4, 5, 6}
    assert all(abs(count - 2000) < 200 for count in counts.values()), "five standard deviations"


def test_a_drawn_job_has_known_lengths_prompts_unlike_generations():
    one, other = LengthRange(1, 1000), LengthRange(1, 1000)
    job = Workload.drawn(500, one, other, seed=4)
    assert not job.assumed
    assert job.prompt_lens != job.gen_lens, "not the same numbers twice"
    assert job.limits == job.gen_lens
    assert job == Workload.drawn(500, one, other, seed=4)
    assert job != Workload.drawn(500, one, other, seed=5)
    fixed = LengthRange(9, 9)
    assert Workload.drawn(5, fixed, fixed, seed=0) == Workload.uniform(5, 9, 9)


def test_places_by_length_are_in_order_and_complete():
    job = Workload((5, 1, 3, 2), (7, 9, 7, 1))
    assert job.by_length == (3, 2, 0, 1)
