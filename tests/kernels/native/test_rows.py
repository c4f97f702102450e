"""Native row kernels: close to the torch reference, and law 10: a row's bits depend on its own
values, the weights and the instruction set, on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.native import rows
from headrace.kernels.reference import AttentionRule, RouterRule, Scoring
from headrace.kernels.routed import Routing
from headrace.kernels.scratch import Scratch
from tests.kernels.native.values import PATHS, made, same_bits, unaligned

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")


paths = st.sampled_from(PATHS) if PATHS else st.nothing()
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
widths = st.integers(1, 150) | st.sampled_from([255, 256, 257, 1024, 2050])
threads = st.integers(1, 3)


def scratch(nbytes: int = 4 << 20) -> Scratch:
    return Scratch(torch.full((nbytes,), 0xFF, dtype=torch.uint8))  # NaN everywhere


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(path=paths, dtype=dtypes, r=st.integers(1, 40), d=widths, threads=threads)
def test_norm_is_close_to_the_reference_alone_and_among_others(path, dtype, r, d, threads):
    x, weight = unaligned(made(r, d)), unaligned(made(d, seed=1).to(dtype))
    got = rows.rms_norm(x, weight, 1e-5, torch.empty_like(x), threads=threads, path=path)
    close(got, reference.rms_norm(x, weight, 1e-5, torch.empty_like(x)))
    last = x[-1:].clone()
    assert same_bits(rows.rms_norm(last, weight, 1e-5, last, path=path), got[-1:])  # in place


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e15])
def test_norm_at_extreme_scales_and_of_what_is_no_number(path, scale):
    x, weight = made(4, 70) * scale, torch.ones(70)
    wanted = reference.rms_norm(x, weight, 1e-5, torch.empty_like(x))
    close(rows.rms_norm(x, weight, 1e-5, torch.empty_like(x), path=path), wanted)
    x[2, 69] = float("nan")
    got = rows.rms_norm(x, weight, 1e-5, torch.empty_like(x), path=path)
    assert got[2].isnan().all()
    kept = x[[0, 1, 3]]
    assert same_bits(got[[0, 1, 3]], rows.rms_norm(kept, weight, 1e-5, kept, path=path))


@settings(max_examples=60, deadline=None)
@given(path=paths, r=st.integers(1, 30), heads=st.integers(1, 5), half=st.integers(1, 70))
def test_rope_is_close_to_the_reference_alone_and_among_others(path, r, heads, half):
    x = unaligned(made(r, heads, 2 * half))
    frequencies = 1e4 ** (-torch.arange(half) / half)
    positions = torch.arange(r) * 977
    cos, sin = rows.rope_tables(positions, frequencies, 1.5, threads=2)
    wanted_tables = reference.rope_tables(positions, frequencies, 1.5)
    close(cos, wanted_tables[0])
    close(sin, wanted_tables[1])
    temp = torch.empty(x.numel())
    got = rows.apply_rope(x.clone(), cos, sin, temp, path=path, threads=2)
    close(got, reference.apply_rope(x.clone(), cos, sin, temp))
    alone = rows.rope_tables(positions[-1:].clone(), frequencies, 1.5)
    assert same_bits(alone[0], cos[-1:])
    assert same_bits(rows.apply_rope(x[-1:].clone(), *alone, temp, path=path), got[-1:])


@settings(max_examples=60, deadline=None)
@given(path=paths, dtype=dtypes, r=st.integers(1, 40), d=widths, first=st.integers(0, 9))
def test_embed_takes_the_rows_of_the_tokens_that_the_block_holds(path, dtype, r, d, first):
    table, tokens = unaligned(made(8, d).to(dtype)), torch.arange(r) % 20
    got, wanted = made(r, d, seed=3), made(r, d, seed=3)
    rows.embed(tokens, table, first, got, scratch(), path=path, threads=2)
    reference.embed(tokens, table, first, wanted, scratch())
    assert same_bits(got, wanted)
    rows.widen_rows(table, got := torch.empty(8, d), path=path)
    assert same_bits(got, table.float())


def test_final_rows_are_gathered_and_normed():
    hidden, weight, places = made(9, 33), made(33, seed=1).bfloat16(), torch.tensor([7, 0, 7])
    got, wanted = torch.empty(3, 33), torch.empty(3, 33)
    rows.gather_norm(hidden, places, weight, 1e-6, got, scratch(), threads=2)
    reference.gather_norm(hidden, places, weight, 1e-6, wanted, scratch())
    close(got, wanted)
    for outside in (9, -1):
        with pytest.raises(IndexError, match="numbers below 9"):
            rows.gather_norm(hidden, torch.tensor([7, outside, 7]), weight, 1e-6, got, scratch())


def test_angles_are_of_frequencies_that_lie_together():
    apart = made(8, 2)[:, 0]
    with pytest.raises(ValueError, match="contiguous"):
        rows.rope_tables(torch.arange(3), apart, 1.0)


# -- around attention ---------------------------------------------------------------------


def layer_weights(D: int, Q: int, KV: int, dtype: torch.dtype, norm: str, bias: bool, d: int):
    shapes = {"q": (Q, D), "k": (KV, D), "v": (KV, D), "o": (D, Q)}
    weights = {n: (made(*s, seed=i) * s[1] ** -0.5).to(dtype) for i, (n, s) in
               enumerate(shapes.items())}  # fmt: skip
    weights |= {n: made(D, seed=20 + i).to(dtype) for i, n in enumerate(("attn_norm", "ffn_norm"))}
    if bias:
        weights |= {f"{n}_bias": made(s[0], seed=9).to(dtype) for n, s in shapes.items()}
    if norm:
        weights["q_norm"] = made(d if norm == "head" else Q, seed=30).to(dtype)
        weights["k_norm"] = made(d if norm == "head" else KV, seed=31).to(dtype)
    return weights


def around_attention(kernels, hidden, weights, rule, positions, d, **kwargs):
    """q, k, v, hidden and normed of the two calls, attended being q."""
    r, Q, KV = len(hidden), weights["q"].shape[0], weights["k"].shape[0]
    q, k, v = torch.empty(r, Q), torch.empty(r, KV), torch.empty(r, KV)
    frequencies = 1e4 ** (-torch.arange(d // 2) / d)
    cos, sin = rows.rope_tables(positions, frequencies, 1.0)
    kernels.attention_inputs(hidden, weights, rule, cos, sin, q, k, v, scratch(), **kwargs)
    after, normed = hidden.clone(), torch.empty_like(hidden)
    kernels.attention_output(q, weights, rule.eps, after, normed, scratch(), **kwargs)
    return q, k, v, after, normed


@settings(max_examples=40, deadline=None)
@given(
    path=paths,
    dtype=dtypes,
    r=st.integers(1, 40),
    D=st.sampled_from([20, 64, 100]),
    norm=st.sampled_from(["", "head", "row"]),
    bias=st.booleans(),
    clip=st.sampled_from([None, 0.8]),
    threads=threads,
)
def test_what_surrounds_attention_is_close_to_the_reference(
    path, dtype, r, D, norm, bias, clip, threads
):
    d, weights = 12, layer_weights(D, 48, 24, dtype, norm, bias, 12)
    hidden, rule, positions = made(r, D, seed=5), AttentionRule(1e-5, d, clip), torch.arange(r) * 3
    got = around_attention(rows, hidden, weights, rule, positions, d, path=path, threads=threads)
    wanted = around_attention(reference, hidden, weights, rule, positions, d)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    alone = around_attention(rows, hidden[-1:], weights, rule, positions[-1:].clone(), d, path=path)
    assert all(same_bits(a, b[-1:]) for a, b in zip(alone, got, strict=True))


def test_what_is_kept_of_weights_is_not_used_for_others():
    kept, hidden, rule = rows.Kept(), made(3, 20), AttentionRule(1e-5, 12)
    results = []
    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16):
            weights = layer_weights(20, 48, 24, dtype, "", False, 12)
            q, k, v = torch.empty(3, 48), torch.empty(3, 24), torch.empty(3, 24)
            rows.attention_inputs(
                hidden, weights, rule, *torch.ones(2, 3, 6).unbind(0), q, k, v, scratch(), kept=kept
            )
            results.append(q)
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[3])
    assert not same_bits(results[0], results[1])


# -- router -------------------------------------------------------------------------------


def new_routing(mu: int, k: int, experts: int) -> Routing:
    return Routing(
        torch.full((mu, k), -1, dtype=torch.int32), torch.full((mu, k), torch.nan),
        torch.full((mu * k,), -1, dtype=torch.int32), torch.full((mu * k,), torch.nan),
        torch.full((experts + 1,), -1),
    )  # fmt: skip


RULES = {
    "mixtral": (8, 2, RouterRule(renormalise=True)),
    "olmoe": (64, 8, RouterRule()),
    "deepseek-v2": (32, 6, RouterRule(groups=8, kept=3, per_group=1, scale=16.0)),
    "deepseek-v3": (64, 8, RouterRule(Scoring.SIGMOID, True, 8, 4, 2, 2.5)),
    "odd": (13, 5, RouterRule(Scoring.SIGMOID)),
}


@settings(max_examples=80, deadline=None)
@given(
    path=paths,
    case=st.sampled_from(list(RULES)),
    r=st.integers(1, 40),
    biased=st.booleans(),
    ties=st.booleans(),
    threads=threads,
)
def test_routing_equals_the_reference(path, case, r, biased, ties, threads):
    experts, k, rule = RULES[case]
    x, router = unaligned(made(r, 24)), unaligned(made(experts, 24, seed=1) * 0.3)
    if ties:  # whole numbers, and few of them, so that sums are exact in any order
        x, router = unaligned(x.sign()), unaligned(router.sign())
    bias = made(experts, seed=2) if biased else None
    got, wanted = new_routing(45, k, experts), new_routing(45, k, experts)
    rows.route(x, router, rule, got, scratch(), bias, path=path, threads=threads)
    reference.route(x, router, rule, wanted, scratch(), bias)
    assert torch.equal(got.starts, wanted.starts)
    assert torch.equal(got.ids[:r], wanted.ids[:r])
    assert torch.equal(got.rows[: r * k], wanted.rows[: r * k])
    close(got.gates[:r], wanted.gates[:r])
    close(got.weights[: r * k], wanted.weights[: r * k])
    alone = new_routing(1, k, experts)
    rows.route(x[-1:], router, rule, alone, scratch(), bias, path=path)
    assert torch.equal(alone.ids[0], got.ids[r - 1])
    assert same_bits(alone.gates[0], got.gates[r - 1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", list(RULES))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_no_number_is_routed_somewhere_and_harms_no_other(bad, case, path):
    experts, k, rule = RULES[case]
    x, router, kept = made(5, 24), made(experts, 24, seed=1) * 0.3, [0, 1, 3, 4]
    clean, got, wanted = (new_routing(5, k, experts) for _ in range(3))
    rows.route(x, router, rule, clean, scratch(), path=path)
    x[2, 7] = bad
    rows.route(x, router, rule, got, scratch(), path=path)
    reference.route(x, router, rule, wanted, scratch())
    close(got.gates, wanted.gates)
    assert got.gates[2].isnan().all() or (rule.scoring is Scoring.SIGMOID and bad == bad)
    assert len(set(got.ids[2].tolist())) == k
    assert 0 <= got.ids[2].min() <= got.ids[2].max() < experts
    assert torch.equal(got.ids[kept], clean.ids[kept])
    assert same_bits(got.gates[kept], clean.gates[kept])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", list(RULES))
@pytest.mark.parametrize("scale", [1e-30, 1e15])
def test_router_at_extreme_scales(scale, case, path):
    experts, k, rule = RULES[case]
    x, router = made(9, 24) * scale, made(experts, 24, seed=1)
    got, wanted = new_routing(9, k, experts), new_routing(9, k, experts)
    rows.route(x, router, rule, got, scratch(), path=path, threads=2)
    reference.route(x, router, rule, wanted, scratch())
    assert torch.equal(got.ids[:, 0], wanted.ids[:, 0])  # the others may weigh nothing
    close(got.gates, wanted.gates)


@pytest.mark.parametrize(
    "rule",
    [
        RouterRule(groups=3),
        RouterRule(groups=4, kept=5),
        RouterRule(groups=4, kept=1),
        RouterRule(groups=4, kept=2, per_group=3),
    ],
)
def test_rules_that_cannot_route_are_refused(rule):
    for kernels in (rows, reference):
        with pytest.raises(ValueError, match="router: expected equal groups"):
            kernels.route(made(2, 6), made(8, 6), rule, new_routing(2, 3, 8), scratch())


# -- calls that threads share ---------------------------------------------------------------

ROWS = 96
"""Rows of each call below. All have more than 65,536 values: threads share no smaller ones."""

Run = Callable[..., list[torch.Tensor]]
"""Results of the rows in a slice; the rest says how, as the kernel takes it."""


def norm_of_many() -> Run:
    x, weight = made(ROWS, 2050), made(2050, seed=1).bfloat16()
    return lambda at, **how: [rows.rms_norm(x[at], weight, 1e-5, torch.empty_like(x[at]), **how)]


def gathered_norm_of_many() -> Run:
    hidden, weight, places = made(ROWS, 2050), made(2050, seed=1), torch.arange(ROWS) * 7 % ROWS

    def run(at, path, **how):
        out = torch.empty(len(places[at]), 2050)
        rows.gather_norm(hidden, places[at], weight, 1e-5, out, scratch(64), **how)
        return [out]

    return run


def rope_of_many() -> Run:
    x, frequencies = made(ROWS, 16, 128), 1e4 ** (-torch.arange(64) / 64)

    def run(at, path, **how):
        cos, sin = rows.rope_tables(torch.arange(ROWS)[at] * 977, frequencies, 1.5, **how)
        return [cos, sin, rows.apply_rope(x[at].clone(), cos, sin, x, path=path, **how)]

    return run


def embedding_of_many() -> Run:
    table, tokens = made(40, 2050).half(), torch.arange(ROWS) * 7 % 50

    def run(at, **how):
        found = torch.zeros(len(tokens[at]), 2050)
        rows.embed(tokens[at], table, 5, found, scratch(64), **how)
        return [found]

    return run


def widening_of_many() -> Run:
    stored = made(ROWS, 2050).bfloat16()

    def run(at, **how):
        rows.widen_rows(stored[at], out := torch.empty(len(stored[at]), 2050), **how)
        return [out]

    return run


def routing_of_many() -> Run:
    experts, k, rule = RULES["olmoe"]
    x, router, bias = made(ROWS, 64), made(experts, 64, seed=1), made(experts, seed=2)

    def run(at, **how):
        routing = new_routing(len(x[at]), k, experts)
        rows.route(x[at], router, rule, routing, scratch(1 << 18), bias, **how)
        return [routing.ids, routing.gates]

    return run


def surroundings_of_many() -> Run:
    weights = layer_weights(1024, 384, 192, torch.bfloat16, "head", True, 12)
    hidden, rule, positions = made(ROWS, 1024), AttentionRule(1e-5, 12, 0.8), torch.arange(ROWS) * 3
    return lambda at, **how: list(
        around_attention(rows, hidden[at], weights, rule, positions[at], 12, **how)
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "of_many",
    [
        norm_of_many,
        gathered_norm_of_many,
        rope_of_many,
        embedding_of_many,
        widening_of_many,
        routing_of_many,
        surroundings_of_many,
    ],
)
def test_a_row_of_a_call_that_threads_share_has_the_bits_of_the_row_alone(of_many, path):
    run = of_many()
    whole = run(slice(0, ROWS), path=path, threads=1)
    for threads in (2, 3):
        shared = run(slice(0, ROWS), path=path, threads=threads)
        assert all(same_bits(a, b) for a, b in zip(shared, whole, strict=True)), threads
    for row in range(ROWS):
        alone = run(slice(row, row + 1), path=path, threads=1)
        assert all(same_bits(a[0], b[row]) for a, b in zip(alone, whole, strict=True)), row


def test_wrong_operands_are_refused():
    x, weight = made(4, 8), made(8)
    with pytest.raises(TypeError, match="norm: expected 8"):
        rows.rms_norm(x, made(7), 1e-5, x)
    with pytest.raises(ValueError, match="x: expected fp32"):
        rows.rms_norm(x.double(), weight, 1e-5, x.double())
    with pytest.raises(ValueError, match="path: expected"):
        rows.rms_norm(x, weight, 1e-5, x, path="abacus")
    with pytest.raises(ValueError, match="cos: expected"):
        rows.apply_rope(made(4, 1, 8), made(4, 3), made(4, 3), x)
    with pytest.raises(ValueError, match="tokens: expected"):
        rows.embed(torch.zeros(4, dtype=torch.int32), x, 0, x, scratch())
    with pytest.raises(ValueError, match="routing: expected room"):
        rows.route(x, made(8, 8), RouterRule(), new_routing(3, 2, 8), scratch())
    with pytest.raises(ValueError, match="scratch: expected at least"):
        rows.route(x, made(8, 8), RouterRule(), new_routing(4, 2, 8), scratch(64))
