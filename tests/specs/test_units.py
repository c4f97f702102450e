"""Sizes and durations at the edge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.specs.units import format_bytes, format_seconds, parse_size, size_argument


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500_000_000),
        ("600000000", 600_000_000),
        ("1.5 g", 1_500_000_000),
        ("64KiB", 65536),
        ("2tb", 2 * 10**12),
        (1234, 1234),
    ],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1e9", "8GB extra", "9" * 400])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 KB"),
        (1_400_000_000, "1.4 GB"),
        (600_000_000, "600 MB"),
        (2.5e12, "2.5 TB"),
        (1.2e16, "12,000 TB"),
    ],
)
def test_bytes_are_printed_with_three_digits(count, text):
    assert format_bytes(count) == text


@given(st.integers(10**6, 10**14))
def test_a_size_to_type_is_read_as_that_much_or_a_little_more(count):
    assert count <= parse_size(size_argument(count)) <= count * 1.011


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "840 ms"), (12.34, "12.3 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")],
)
def test_durations_are_printed_for_people(seconds, text):
    assert format_seconds(seconds) == text
