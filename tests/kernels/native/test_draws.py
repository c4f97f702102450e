"""Native sampling kernels against the torch definition, and a row's draw among others."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.draws import Draw, Rank
from headrace.kernels.native import draws
from tests.kernels.native.values import PATHS, made, unaligned

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

paths = st.sampled_from(PATHS) if PATHS else st.nothing()
vocabularies = st.integers(1, 600) | st.sampled_from([255, 256, 257, 1000, 4099])


@settings(max_examples=100, deadline=None)
@given(path=paths, s=st.integers(1, 9), v=vocabularies, whole=st.booleans(), seed=st.integers(0, 9))
def test_the_likeliest_token_is_the_reference_s(path, s, v, whole, seed):
    logits = made(s, v, seed=seed, scale=3)
    logits = unaligned(logits.round() if whole else logits)  # many ties
    got = draws.best_tokens(logits, threads=2, path=path)
    assert got == reference.best_tokens(logits)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", [0, 17, 255, 256, 299])
def test_rows_without_a_finite_maximum_are_told(path, place):
    logits = made(4, 300)
    logits[0, place] = math.nan
    logits[1, place] = math.inf
    logits[2] = -math.inf
    logits[3, place] = -math.inf
    got = draws.best_tokens(logits, path=path)
    assert [b.finite for b in got] == [False, False, False, True]
    assert not any(b.all_finite for b in got)
    assert math.isnan(got[0].value)
    assert (got[0].token, got[1].token) == (place, place)
    assert got[3] == reference.best_tokens(logits)[3]


@settings(max_examples=200, deadline=None)
@given(
    path=paths,
    v=vocabularies,
    scale=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    whole=st.booleans(),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 0.01]),
    seed=st.integers(0, 1 << 20),
)
def test_draws_are_the_reference_s(path, v, scale, whole, temperature, min_p, top_k, top_p, seed):
    logits = made(3, v, seed=seed, scale=scale)
    logits = unaligned(logits.round() if whole else logits)
    logits[1, v // 2 :] = -math.inf  # ruled out
    logits[1, 0] = 0.0
    tops = logits.amax(-1).tolist()
    uniform = (seed * 0.6180339887) % 1.0
    asked = [Draw(i, tops[i], temperature, min_p, top_k, top_p, uniform) for i in (2, 0, 1)]
    got = draws.draw_tokens(logits, asked, threads=2, path=path)
    wanted = reference.draw_tokens(logits, asked)
    assert all(math.isfinite(logits[d.row, t]) for d, t in zip(asked, got, strict=True))
    for d, mine, theirs in zip(asked, got, wanted, strict=True):
        if mine != theirs:  # only where the uniform number falls on the seam of two tokens
            assert_on_the_seam(logits, d, mine, theirs)
    assert [draws.draw_tokens(logits, [d], path=path)[0] for d in asked] == got


def assert_on_the_seam(logits, d: Draw, mine: int, theirs: int) -> None:
    weights = (logits[d.row : d.row + 1] - d.top).div(d.temperature).exp()
    reference.draws.truncate(weights, [d])
    sums = weights[0].double().cumsum(0) / weights.double().sum()
    low = min(mine, theirs)
    assert weights[0, mine] > 0, "a token that was ruled out"
    assert abs(float(sums[low]) - d.uniform) < 1e-6


@settings(max_examples=60, deadline=None)
@given(path=paths, v=vocabularies, count=st.integers(0, 30), whole=st.booleans())
def test_log_probabilities_and_their_order_are_the_reference_s(path, v, count, whole):
    logits = made(4, v, scale=4)
    logits = unaligned(logits.round() if whole else logits)
    tops = logits.amax(-1).tolist()
    asked = [Rank(i, tops[i], count) for i in (3, 1)]
    got = draws.rank_tokens(logits, asked, threads=2, path=path)
    for rank, found in zip(asked, got, strict=True):
        line = logits[rank.row]
        order = sorted(range(v), key=lambda i: (-float(line[i]), i))[:count]
        assert [t for t, _ in found.best] == order
        assert [x for _, x in found.best] == line[order].tolist()
        assert found.log_sum == pytest.approx(float(line.double().logsumexp(0)), abs=1e-6)
    for mine, theirs in zip(got, reference.rank_tokens(logits, asked), strict=True):
        assert mine.best == theirs.best
    assert [draws.rank_tokens(logits, [r], path=path)[0] for r in asked] == got


CUTS = ((0.0, 0, 1.0), (0.0, 0, 0.9), (0.02, 0, 1.0), (0.0, 50, 0.95), (0.0, 5, 1.0))
"""min-p, top-k and top-p of the draws below."""


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_row_of_a_call_that_threads_share_gives_what_it_gives_alone(path, whole):
    """4 rows of 40,000 logits: threads share no call of less than 65,536 values. Sums of
    logarithms are compared bit for bit."""
    logits = made(4, 40_000, scale=3)
    logits = logits.round() if whole else logits  # many ties
    tops = logits.amax(-1).tolist()
    places = [2, 0, 3, 1]
    asked = {
        draws.draw_tokens: [Draw(i, tops[i], 0.9, *cut, 0.23 * i + 0.1)
                            for cut in CUTS for i in places],
        draws.rank_tokens: [Rank(i, tops[i], most) for most in (0, 1, 20) for i in places],
    }  # fmt: skip
    for kernel, each in asked.items():
        found = kernel(logits, each, threads=1, path=path)
        for threads in (2, 3):
            assert kernel(logits, each, threads=threads, path=path) == found, threads
        for one, wanted in zip(each, found, strict=True):
            assert kernel(logits, [one], path=path) == [wanted]
            own = logits[one.row : one.row + 1].clone()
            assert kernel(own, [one._replace(row=0)], path=path) == [wanted]
    best = draws.best_tokens(logits, threads=1, path=path)
    for threads in (2, 3):
        assert draws.best_tokens(logits, threads=threads, path=path) == best
    for i in range(4):
        assert draws.best_tokens(logits[i : i + 1], path=path) == [best[i]]


def test_wrong_operands_are_refused():
    logits = made(2, 8)
    with pytest.raises(ValueError, match="row: expected 0 to 1"):
        draws.rank_tokens(logits, [Rank(2, 0.0, 1)])
    with pytest.raises(ValueError, match="logits: expected fp32"):
        draws.best_tokens(logits.double())
