"""Shared prompt prefixes are counted in whole blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.planner.prefixes import prefix_tokens_shared


def test_only_leading_whole_blocks_count():
    a = tuple(range(40))
    assert prefix_tokens_shared([a, a[:20] + (99,) * 20], block=16) == 16
    assert prefix_tokens_shared([a, a], block=16) == 32
    assert prefix_tokens_shared([a, (99, *a[1:])], block=16) == 0
    assert prefix_tokens_shared([a, a[16:]], block=16) == 0
    assert prefix_tokens_shared([], block=16) == 0


def test_a_prompt_does_not_share_with_itself():
    assert prefix_tokens_shared([(1,) * 64], block=16) == 0


@given(st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=6), st.integers(1, 4))
def test_it_equals_comparing_every_pair(prompts, block):
    def common(a, b):
        n = 0
        while n < min(len(a), len(b)) and a[n] == b[n]:
            n += 1
        return n // block * block

    expected = sum(
        max((common(p, q) for q in prompts[:i]), default=0) for i, p in enumerate(prompts)
    )
    assert prefix_tokens_shared(prompts, block) == expected
