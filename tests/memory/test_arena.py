from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BudgetError, HeadraceError
from headrace.memory.arena import Arena, Region


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@given(st.lists(st.tuples(st.integers(1, 9000), st.sampled_from([64, 4096])), max_size=12))
def test_regions_are_aligned_zeroed_and_disjoint(requests: list[tuple[int, int]]) -> None:
    with Arena("host", 1 << 20) as arena:
        for i, (nbytes, align) in enumerate(requests):
            view = arena.take(f"b{i}", nbytes, align)
            assert view.nbytes == nbytes
            assert address(view) % align == 0
            assert not any(view)
            view[:] = b"\1" * nbytes
        end = 0
        for region in arena.layout.values():
            assert region.offset >= end
            end = region.offset + region.nbytes
        assert arena.used == -(-end // 4096) * 4096


def test_more_than_the_capacity_is_refused_with_the_bytes_that_would_do() -> None:
    with Arena("host", 8192) as arena:
        arena.take("kv", 5000)
        with pytest.raises(BudgetError, match="tier host cannot hold slot") as caught:
            arena.take("slot", 4096)
        assert caught.value.smallest_bytes == 8192 + 4096
        arena.take("small", 100, align=64)
        assert dict(arena.layout) == {"kv": Region(0, 5000), "small": Region(5056, 100)}


def test_an_exact_fit_is_accepted_and_nothing_is_a_size() -> None:
    with Arena("host", 4096) as arena:
        assert len(arena.take("all", 4096)) == 4096
        assert len(arena.take("none", 0)) == 0


def test_a_name_is_handed_out_once() -> None:
    with Arena("host", 8192) as arena:
        arena.take("kv", 10)
        with pytest.raises(HeadraceError, match="'kv'"):
            arena.take("kv", 10)


def test_views_outlive_a_closed_arena() -> None:
    arena = Arena("host", 4096)
    view = arena.take("x", 4)
    arena.close()
    arena.close()
    view[:] = b"abcd"
    assert bytes(view) == b"abcd"
    with pytest.raises(HeadraceError):
        arena.take("y", 4)


def test_a_large_arena_takes_no_memory_until_it_is_written() -> None:
    with Arena("host", 8 << 30) as arena:
        view = arena.take("weights", 8 << 30)
        assert address(view) % mmap.PAGESIZE == 0


def test_more_than_can_be_mapped_is_refused() -> None:
    with pytest.raises(HeadraceError, match="cannot map"):
        Arena("host", 1 << 62)
