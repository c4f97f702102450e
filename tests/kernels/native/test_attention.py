"""Native attention: close to the torch reference and to SDPA, and law 10: a row's bits depend on
its own query and on the keys and values that it sees, on nothing else."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from headrace.kernels import native, reference
from headrace.kernels.kv import KvCache
from headrace.kernels.native import attention
from headrace.kernels.reference import Piece
from headrace.specs.scratch import AttentionTile

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
TILE = AttentionTile(1 << 12, 256, 1 << 20, 128)


def paths() -> list[str]:
    """Paths that this processor has."""
    found = []
    for path in ("avx512", "avx2", "neon", "plain"):
        try:
            found.append(attention.path_of(path))
        except ValueError:
            continue
    return found


PATHS = paths() if native.available() else []
KINDS = [(dtype, path) for dtype in DTYPES for path in PATHS]
kinds = st.sampled_from(KINDS) if KINDS else st.nothing()
heads_of = st.sampled_from([(1, 1), (2, 1), (1, 4), (3, 2), (2, 3), (1, 8), (1, 13)])
widths = st.integers(1, 70) | st.sampled_from([64, 80, 96, 128])
windows = st.none() | st.integers(1, 200) | st.just(1)
lengths = st.integers(0, 150) | st.sampled_from([63, 64, 127, 128, 1000, 1023, 1024, 1100])


def made(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def unaligned(values: torch.Tensor) -> torch.Tensor:
    """The same values, one element off whatever alignment they had."""
    memory = torch.empty(values.numel() + 1, dtype=values.dtype)[1:]
    return memory.view(values.shape).copy_(values)


def poisoned(blocks: int, block: int, heads: int, d: int, dtype: torch.dtype) -> KvCache:
    """A cache in which nothing was written: NaN, or integers whose scale is NaN."""
    shape = (2, blocks, heads, block)
    if dtype == torch.int8:
        integers = torch.full((*shape, d), -1, dtype=dtype)
        return KvCache(integers, torch.full(shape, torch.nan))
    return KvCache(torch.full((*shape, d), torch.nan, dtype=dtype))


class Sequences:
    """Sequences of random keys, values and queries, their blocks scattered over one cache."""

    def __init__(
        self, lengths: list[int], heads: tuple[int, int], d: int, dtype: torch.dtype,
        block: int = 16, seed: int = 0, scale: float = 1.0,
    ) -> None:  # fmt: skip
        (kv_heads, self.group), self.d, self.block = heads, d, block
        needed = [-(-n // block) for n in lengths]
        generator = torch.Generator().manual_seed(seed)
        free = torch.randperm(sum(needed) + 3, generator=generator).tolist()
        self.cache = poisoned(len(free), block, kv_heads, d, dtype)
        self.blocks = [[free.pop() for _ in range(n)] for n in needed]
        self.k, self.v, self.q = [], [], []
        for i, n in enumerate(lengths):
            each = made(3 + kv_heads * self.group, n, d, seed=31 * seed + i, scale=scale)
            self.q.append(each[: kv_heads * self.group].transpose(0, 1).reshape(n, -1))
            k, v = made(2, n, kv_heads * d, seed=77 * seed + i, scale=scale)
            self.k.append(k)
            self.v.append(v)

    def write(self, number: int, first: int, last: int, **settings) -> None:
        """K and V of some tokens to the cache."""
        table = self.blocks[number]
        slots = [table[p // self.block] * self.block + p % self.block for p in range(first, last)]
        k, v = (each[number][first:last] for each in (self.k, self.v))
        attention.append(k, v, self.cache, torch.tensor(slots, dtype=torch.int64), **settings)

    def attend(
        self, parts, window=None, sinks=None, causal=True, memory=1 << 18, **settings
    ) -> list[torch.Tensor]:  # fmt: skip
        """Results of ``parts``, (sequence, first, last) each, in one call."""
        pieces, row = [], 0
        for number, first, last in parts:
            pieces.append(Piece(row, last - first, first, self.blocks[number]))
            row += last - first
        q = torch.cat([self.q[n][a:b] for n, a, b in parts])
        out = torch.full_like(q, torch.nan)
        plan = attention.plan_attention(pieces, TILE, self.block, window, causal)
        scratch = torch.empty(memory)
        attention.attend(q, self.cache, plan, out, scratch, TILE, window, sinks, **settings)
        return list(out.split([b - a for _, a, b in parts]))

    def reference(self, number: int, window=None, sinks=None, causal=True) -> torch.Tensor:
        """The torch reference on the same cache."""
        q = self.q[number]
        out = torch.empty_like(q)
        pieces = [Piece(0, len(q), 0, self.blocks[number])]
        groups = reference.plan_attention(pieces, TILE, self.block, window, causal)
        memory = torch.empty(1 << 25, dtype=torch.uint8)
        reference.attend(q, self.cache, groups, out, memory, TILE, window, sinks)
        return out


@settings(max_examples=80, deadline=None)
@given(kind=kinds, heads=heads_of, d=widths, length=lengths, window=windows, data=st.data())
def test_attention_is_close_to_the_reference(kind, heads, d, length, window, data):
    dtype, path = kind
    length = min(length, 300) + 1
    all_see = window is None and data.draw(st.booleans())
    sinks = made(math.prod(heads), seed=5) if data.draw(st.booleans()) else None
    them = Sequences([length], heads, d, dtype, data.draw(st.sampled_from([1, 5, 16])))
    threads = data.draw(st.integers(1, 3))
    them.write(0, 0, length, path=path, threads=threads)
    asked = {"window": window, "sinks": sinks, "causal": not all_see}
    (got,) = them.attend([(0, 0, length)], **asked, path=path, threads=threads)
    torch.testing.assert_close(got, them.reference(0, **asked), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("window", [None, 70])
def test_attention_is_close_to_torchs_own(path, window):
    them = Sequences([333], (2, 4), 64, torch.float32)
    them.write(0, 0, 333, path=path)
    (got,) = them.attend([(0, 0, 333)], window=window, path=path, threads=2)
    q, k, v = (each[0].view(333, -1, 64).transpose(0, 1)[None] for each in (them.q, them.k, them.v))
    distance = torch.arange(333)[:, None] - torch.arange(333)
    seen = (distance >= 0) & (distance < (window or 333))
    wanted = functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(
        got, wanted[0].transpose(0, 1).reshape(333, -1), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=80, deadline=None)
@given(kind=kinds, heads=heads_of, d=widths, length=lengths, window=windows, data=st.data())
def test_a_row_has_the_same_bits_however_it_is_computed(kind, heads, d, length, window, data):
    """One prompt, whole and alone with one thread; or in chunks, each appended just before it
    attends, among other sequences, in other blocks, by several threads, with scratch or not."""
    dtype, path = kind
    length += 1
    sinks = made(math.prod(heads), seed=5) if data.draw(st.booleans()) else None
    alone = Sequences([length], heads, d, dtype, 16)
    alone.write(0, 0, length, path=path)
    (whole,) = alone.attend([(0, 0, length)], window, sinks, path=path)

    others = data.draw(st.lists(st.integers(1, 90), max_size=3))
    block = data.draw(st.sampled_from([1, 3, 16, 64, 100]))
    them = Sequences([length, *others], heads, d, dtype, block)
    cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=4)) | {0, length})
    first = max(0, cuts[-2] - 1) if data.draw(st.booleans()) else 0
    for number, n in enumerate(others, 1):
        them.write(number, 0, n, path=path)
    for begin, end in itertools.pairwise(cuts):
        them.write(0, begin, end, path=path, threads=data.draw(st.integers(1, 3)))
        beside = [(i, 0, n) for i, n in enumerate(others, 1)]
        place = data.draw(st.integers(0, len(beside)))
        parts = [*beside[:place], (0, begin, end), *beside[place:]]
        memory = data.draw(st.sampled_from([0, 1 << 18]))
        threads = data.draw(st.integers(1, 4))
        got = them.attend(parts, window, sinks, memory=memory, path=path, threads=threads)[place]
        assert same_bits(got, whole[begin:end])
    for position in {first, length - 1, length // 2}:
        for threads, memory in ((1, 0), (3, 1 << 18)):
            parts = [(0, position, position + 1)]
            got = them.attend(parts, window, sinks, memory=memory, path=path, threads=threads)
            assert same_bits(got[0][0], whole[position])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_sharing_a_long_sequence_among_threads_changes_no_bit(dtype, path):
    length = 4200 if path != "plain" else 2100
    them = Sequences([length], (1, 2), 32, dtype, block=16)
    them.write(0, 0, length, path=path, threads=2)
    for window in (None, 1500):
        parts = [(0, length - 3, length)]
        (one,) = them.attend(parts, window, path=path, threads=1)
        (shared,) = them.attend(parts, window, path=path, threads=4)
        (single,) = them.attend([(0, length - 1, length)], window, path=path, threads=2)
        assert same_bits(one, shared)
        assert same_bits(single, one[-1:])
        assert not one.isnan().any()


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_views_at_any_address_are_read_and_written_in_place(dtype, path):
    them = Sequences([90], (2, 2), 24, dtype)
    them.write(0, 0, 90, path=path)
    (wanted,) = them.attend([(0, 20, 90)], path=path)
    scales = them.cache.scales
    cache = KvCache(unaligned(them.cache.values), None if scales is None else unaligned(scales))
    wide = made(70, 110, seed=3)
    q, out = wide[:, 1:97], torch.full((72, 110), 7.0)
    q.copy_(them.q[0][20:90])
    plan = attention.plan_attention([Piece(0, 70, 20, them.blocks[0])], TILE, 16, None)
    attention.attend(q, cache, plan, out[1:71, 3:99], torch.empty(7), path=path)
    assert same_bits(out[1:71, 3:99], wanted)
    out[1:71, 3:99] = 7
    assert (out == 7).all()


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_nothing_to_do_is_nothing_done(dtype, path):
    them = Sequences([3], (1, 1), 4, dtype)
    them.write(0, 0, 0, path=path)
    plan = attention.plan_attention([], TILE, 16, None)
    out = torch.full((2, 4), 5.0)
    attention.attend(made(2, 4), them.cache, plan, out, torch.empty(0), path=path)
    them.write(0, 0, 3, path=path)
    none = attention.plan_attention([Piece(0, 0, 3, them.blocks[0])], TILE, 16, None)
    attention.attend(made(2, 4), them.cache, none, out, torch.empty(0), path=path)
    assert (out == 5).all()
    (one,) = them.attend([(0, 0, 1)], path=path)  # softmax over one key: its value
    torch.testing.assert_close(one, them.reference(0)[:1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_nan_and_infinity_reach_the_rows_that_see_them_and_no_others(dtype, path):
    for bad in (torch.nan, torch.inf, -torch.inf):
        them = Sequences([150], (1, 2), 8, dtype)
        them.write(0, 0, 150, path=path)
        (clean,) = them.attend([(0, 0, 150)], path=path)
        them.v[0][100, 3] = bad
        them.write(0, 100, 101, path=path)
        (got,) = them.attend([(0, 0, 150)], path=path)
        assert same_bits(got[:100], clean[:100])
        assert not got[100:, 3].isfinite().any()
        them.q[0][40, 0] = bad
        (got,) = them.attend([(0, 0, 100)], path=path)
        assert got[40].isnan()[:8].all()
        assert same_bits(got[:40], clean[:40])
        assert same_bits(got[41:], clean[41:100])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_a_row_whose_scores_are_all_minus_infinity_is_nan(dtype, path):
    if dtype == torch.int8:
        return  # no such score: a value that is not finite makes its head's scale NaN
    them = Sequences([70], (1, 1), 1, dtype)
    them.q[0].fill_(1.0)
    them.k[0].fill_(-torch.inf)
    them.write(0, 0, 70, path=path)
    (got,) = them.attend([(0, 0, 70)], path=path)
    assert got.isnan().all()
    them.k[0][64] = 0.0  # one key that counts: its value
    them.write(0, 64, 65, path=path)
    (got,) = them.attend([(0, 0, 70)], path=path)
    torch.testing.assert_close(got[64:], them.v[0][64].to(dtype).float().expand(6, 1))


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 30.0, 200.0])
def test_extreme_scales(dtype, path, scale):
    """As exact as scores are: a score near scale^2 is rounded to its last place."""
    them = Sequences([200], (1, 2), 16, dtype, scale=scale)
    them.write(0, 0, 200, path=path)
    (got,) = them.attend([(0, 0, 200)], path=path)
    last_place = max(1.0, scale**2) * 2**-23
    torch.testing.assert_close(got, them.reference(0), atol=100 * scale * last_place, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_a_sink_takes_weight_and_gives_no_value(path):
    them = Sequences([80], (1, 2), 16, torch.float32)
    them.write(0, 0, 80, path=path)
    (without,) = them.attend([(0, 0, 80)], path=path)
    (faint,) = them.attend([(0, 0, 80)], sinks=torch.full((2,), -1e4), path=path)
    torch.testing.assert_close(faint, without, atol=1e-6, rtol=1e-6)
    (strong,) = them.attend([(0, 0, 80)], sinks=torch.tensor([1e4, -torch.inf]), path=path)
    assert strong[:, :16].abs().max() < 1e-30
    torch.testing.assert_close(strong[:, 16:], without[:, 16:], atol=1e-6, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(kind=kinds, rows=st.integers(1, 9), d=widths, data=st.data())
def test_append_writes_the_bits_of_the_reference(kind, rows, d, data):
    dtype, path = kind
    scale = data.draw(st.sampled_from([1e-42, 1e-37, 1e-7, 1e-5, 1.0, 1e3, 7e4, 1e38]))
    k, v = made(2, rows, 3 * d, seed=rows, scale=scale)
    if data.draw(st.booleans()):
        k[0, d - 1] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, 0.0]))
    mine, theirs = (poisoned(4, 5, 3, d, dtype) for _ in range(2))
    slots = torch.randperm(20)[:rows]
    attention.append(k, v, mine, slots, path=path, threads=2)
    reference.append(k, v, theirs, slots, torch.empty(rows * 3 * d))
    for half in (0, 1):
        got, wanted = mine.half(half), theirs.half(half)
        finite = wanted.float().isfinite()
        assert torch.equal(got.float().isfinite(), finite)
        if theirs.scales is not None:
            assert torch.equal(mine.scales.nan_to_num(-1), theirs.scales.nan_to_num(-1))
            finite &= theirs.scales[half].isfinite()[..., None]
        assert torch.equal(got[finite], wanted[finite])


@pytest.mark.parametrize("path", PATHS)
def test_every_half_is_rounded_as_torch_does(path):
    halves = torch.arange(65536).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        exact = halves.view(torch.int16).view(dtype).float()
        exact = exact[exact.isfinite()].sort().values
        between = (exact[1:] + exact[:-1]) / 2
        around = torch.cat([exact, between, between * (1 + 2**-23), between * (1 - 2**-23)])
        around = around[around.isfinite()]
        cache = poisoned(around.numel(), 1, 1, 1, dtype)
        slots = torch.arange(around.numel())
        attention.append(around[:, None], around[:, None], cache, slots, path=path)
        assert torch.equal(cache.values[0].view(-1), around.to(dtype))


# -- latent form --------------------------------------------------------------------------

latent_sizes = st.sampled_from([(1, 0), (32, 8), (70, 5), (512, 64)])
"""Columns that are keys and values both, and those that are keys only."""
latent_lengths = st.integers(1, 140) | st.sampled_from([1000, 1023, 1024, 1025, 1040, 1100])


def first_of(length: int, most: int) -> int:
    """All rows of a short sequence attend, the last ``most`` of one that crosses a split."""
    return 0 if length <= 140 else length - most


class Latents:
    """Sequences of random latent vectors and queries, their blocks scattered over one cache. The
    vectors of a sequence are the same whatever its company and its blocks."""

    def __init__(
        self, lengths: list[int], heads: int, sizes: tuple[int, int], dtype: torch.dtype,
        block: int = 16,
    ) -> None:  # fmt: skip
        self.columns, self.width, self.block = sizes[0], sum(sizes), block
        needed = [-(-n // block) for n in lengths]
        free = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(7)).tolist()
        full = poisoned(len(free), block, 1, self.width, dtype)
        scales = None if full.scales is None else full.scales[:1]
        self.cache = KvCache(full.values[:1], scales)
        self.blocks = [[free.pop() for _ in range(n)] for n in needed]
        self.latent = [made(n, self.width, seed=2 * i) for i, n in enumerate(lengths)]
        self.q = [made(n, heads * self.width, seed=2 * i + 1) for i, n in enumerate(lengths)]

    def write(self, number: int, first: int, last: int, **settings) -> None:
        """Vectors of some tokens to the cache."""
        table = self.blocks[number]
        slots = [table[p // self.block] * self.block + p % self.block for p in range(first, last)]
        places = torch.tensor(slots, dtype=torch.int64)
        attention.append(self.latent[number][first:last], None, self.cache, places, **settings)

    def attend(self, parts, window=None, memory=1 << 18, **settings) -> list[torch.Tensor]:
        """Results of ``parts``, (sequence, first, last) each, in one call."""
        q, out, pieces = self._asked(parts)
        plan = attention.plan_latent(pieces, self.block, window)
        scale, scratch = self.width**-0.5, torch.empty(memory)
        attention.attend_latent(q, self.cache, plan, out, scratch, scale, window, **settings)
        return list(out.split([b - a for _, a, b in parts]))

    def reference(self, parts, window=None) -> list[torch.Tensor]:
        """The torch reference on the same cache."""
        q, out, pieces = self._asked(parts)
        plan, none = reference.plan_latent(pieces, self.block, window), torch.empty(0)
        reference.attend_latent(q, self.cache, plan, out, none, self.width**-0.5, window)
        return list(out.split([b - a for _, a, b in parts]))

    def _asked(self, parts) -> tuple[torch.Tensor, torch.Tensor, list[Piece]]:
        pieces, row = [], 0
        for number, first, last in parts:
            pieces.append(Piece(row, last - first, first, self.blocks[number]))
            row += last - first
        q = torch.cat([self.q[n][a:b] for n, a, b in parts])
        return q, torch.full((row, q.shape[1] // self.width * self.columns), torch.nan), pieces


@settings(max_examples=40, deadline=None)
@given(
    kind=kinds, heads=st.integers(1, 20), sizes=latent_sizes, length=latent_lengths,
    window=windows, data=st.data(),
)  # fmt: skip
def test_the_latent_form_is_close_to_the_reference(kind, heads, sizes, length, window, data):
    dtype, path = kind
    others = data.draw(st.lists(st.integers(1, 30), max_size=2))
    threads = data.draw(st.integers(1, 3))
    block = data.draw(st.sampled_from([1, 5, 16]))
    them = Latents([length, *others], heads, sizes, dtype, block)
    parts = [(0, first_of(length, 9), length), *((i, 0, n) for i, n in enumerate(others, 1))]
    for number, _, n in parts:
        them.write(number, 0, n, path=path, threads=threads)
    got = them.attend(parts, window, path=path, threads=threads)
    for mine, wanted in zip(got, them.reference(parts, window), strict=True):
        torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    kind=kinds, heads=st.integers(1, 6), sizes=latent_sizes, length=latent_lengths,
    window=windows, data=st.data(),
)  # fmt: skip
def test_a_latent_row_has_the_same_bits_however_it_is_computed(
    kind, heads, sizes, length, window, data
):
    """Whole and alone with one thread; or in chunks, each appended just before it attends, among
    other sequences, in other blocks, by several threads, with scratch or not."""
    dtype, path = kind
    first = first_of(length, 20)
    alone = Latents([length], heads, sizes, dtype)
    alone.write(0, 0, length, path=path)
    (whole,) = alone.attend([(0, first, length)], window, path=path)

    others = data.draw(st.lists(st.integers(1, 50), max_size=2))
    block = data.draw(st.sampled_from([1, 3, 16, 64, 100]))
    them = Latents([length, *others], heads, sizes, dtype, block)
    for number, n in enumerate(others, 1):
        them.write(number, 0, n, path=path)
    them.write(0, 0, first, path=path)
    cuts = sorted(data.draw(st.sets(st.integers(first, length), max_size=3)) | {first, length})
    for begin, end in itertools.pairwise(cuts):
        threads = data.draw(st.integers(1, 3))
        them.write(0, begin, end, path=path, threads=threads)
        beside = [(i, 0, n) for i, n in enumerate(others, 1)]
        place = data.draw(st.integers(0, len(beside)))
        parts = [*beside[:place], (0, begin, end), *beside[place:]]
        memory = data.draw(st.sampled_from([0, 1 << 12, 1 << 18]))
        got = them.attend(parts, window, memory=memory, path=path, threads=threads)[place]
        assert same_bits(got, whole[begin - first : end - first])
    for position in {first, length - 1}:
        for threads, memory in ((1, 0), (2, 1 << 18), (3, 1 << 18)):
            parts = [(0, position, position + 1)]
            got = them.attend(parts, window, memory=memory, path=path, threads=threads)
            assert same_bits(got[0][0], whole[position - first])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_sharing_a_long_latent_sequence_among_threads_changes_no_bit(dtype, path):
    length = 4200 if path != "plain" else 2100
    them = Latents([length], 3, (32, 8), dtype)
    them.write(0, 0, length, path=path, threads=2)
    for window in (None, 1500):
        parts = [(0, length - 3, length)]
        (one,) = them.attend(parts, window, path=path, threads=1)
        (wanted,) = them.reference(parts, window)
        torch.testing.assert_close(one, wanted, atol=2e-5, rtol=1e-5)
        for threads, memory in ((2, 1 << 18), (3, 1 << 18), (3, 0)):
            (shared,) = them.attend(parts, window, memory=memory, path=path, threads=threads)
            assert same_bits(one, shared)
        (single,) = them.attend([(0, length - 1, length)], window, path=path, threads=2)
        assert same_bits(single, one[-1:])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_reaches_the_latent_rows_that_see_it_and_no_others(dtype, path, bad):
    them = Latents([150], 2, (8, 4), dtype)
    them.write(0, 0, 150, path=path)
    (clean,) = them.attend([(0, 0, 150)], path=path)
    them.latent[0][100, 3] = bad
    them.write(0, 100, 101, path=path)
    (got,) = them.attend([(0, 0, 150)], path=path, threads=2)
    assert same_bits(got[:100], clean[:100])
    assert not got[100:].view(50, 2, 8)[:, :, 3].isfinite().any()  # its value, whatever its weight
    them.q[0][40, 0] = bad
    (got,) = them.attend([(0, 0, 100)], path=path, threads=2)
    assert got[40, :8].isnan().all()
    assert same_bits(got[40, 8:], clean[40, 8:])  # the other head
    assert same_bits(got[:40], clean[:40])
    assert same_bits(got[41:], clean[41:100])


def test_what_does_not_fit_is_refused():
    them = Sequences([20], (2, 1), 8, torch.float16)
    q, out, memory = made(20, 16), torch.empty(20, 16), torch.empty(64)
    pieces = [Piece(0, 20, 0, them.blocks[0])]
    plan = attention.plan_attention(pieces, TILE, 16, None)
    cases = [
        (q[:5], them.cache, plan, out),
        (q.double(), them.cache, plan, out),
        (q, KvCache(them.cache.values[:, :1]), plan, out),
        (q, KvCache(them.cache.values[:, :, :, :4]), plan, out),
        (q, them.cache, plan, out[:, :15]),
        (q, them.cache, plan, torch.empty(16, 20).T),
    ]
    for case in cases:
        with pytest.raises((ValueError, TypeError), match="expected"):
            attention.attend(*case, memory)
    for cache in (
        KvCache(them.cache.values.transpose(1, 2)),
        KvCache(them.cache.values.to(torch.int8)),
        KvCache(them.cache.values, torch.empty(2, 5, 2, 16)),
    ):
        with pytest.raises((ValueError, TypeError), match="expected"):
            attention.append(q, q, cache, torch.arange(20))
    with pytest.raises(ValueError, match="slots"):
        attention.append(q, q, them.cache, torch.arange(20) + 16 * 5)
    with pytest.raises(ValueError, match="blocks"):
        attention.plan_attention([Piece(0, 20, 15, them.blocks[0])], TILE, 16, None)
    with pytest.raises(ValueError, match="window"):
        attention.plan_attention(pieces, TILE, 16, 3, causal=False)
    with pytest.raises(ValueError, match="path"):
        attention.attend(q, them.cache, plan, out, memory, path="sse")
    with pytest.raises(TypeError, match="sinks"):
        attention.attend(q, them.cache, plan, out, memory, sinks=torch.zeros(3))
