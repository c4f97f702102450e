"""Gated activations other than the plain SiLU, native against the definition in torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from headrace.kernels import native, reference
from headrace.kernels.native import matrix
from headrace.kernels.native.kept import Kept
from headrace.kernels.reference.moe import activate
from headrace.kernels.routed import Routed
from headrace.kernels.silu import SILU, Silu
from tests.kernels.native.test_experts_together import STORED, stored
from tests.kernels.native.test_matrix import copied, layer, made, paths, same_bits

needs_native = pytest.mark.skipif(not native.available(), reason="built without native kernels")

GPT_OSS = Silu(alpha=1.702, shift=1.0, limit=7.0)
PATHS = paths(torch.float32) if native.available() else []
silus = st.sampled_from([SILU, GPT_OSS]) | st.builds(
    Silu,
    alpha=st.floats(0.1, 3.0),
    shift=st.sampled_from([0.0, 1.0, -0.5]),
    limit=st.none() | st.floats(0.01, 50.0),
)
values = st.floats(width=32) | st.floats(-60.0, 60.0, width=32)


def up_of(kernels, gate, up, silu, **settings):
    """What lies between for products ``gate`` and ``up`` [W]: x is 1, weights are the products."""
    weights = {"gate": torch.tensor(gate)[:, None], "up": torch.tensor(up)[:, None]}
    inter, memory = torch.empty(1, len(gate)), torch.empty(1 << 18, dtype=torch.uint8)
    batches = [Routed(1, torch.ones(1, 1), None, None)]
    kernels.expert_up(batches, 0, weights, inter, memory, silu=silu, **settings)
    return inter[0]


@needs_native
@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(PATHS or ["none"]),
    products=st.lists(st.tuples(values, values), min_size=1, max_size=40),
    silu=silus,
)
@example(
    path=PATHS[0] if PATHS else "none",
    products=[
        (g, u)
        for g in (torch.nan, torch.inf, -torch.inf, 7.0, 7.5, -7.5, -200.0, 3e38, -3e38, 0.0)
        for u in (torch.nan, torch.inf, -torch.inf, 7.0, 7.5, -7.5, 3e38, -3e38, -0.0)
    ],
    silu=GPT_OSS,
)
def test_every_pair_of_products_gives_what_the_reference_gives(path, products, silu):
    # Where e^-x leaves fp32 one of the two may be 0 and the other not yet.
    products = [(g, u) for g, u in products if not 86.0 < -silu.alpha * g < 90.0]
    assume(products)
    gate, up = (list(each) for each in zip(*products, strict=True))
    got, wanted = up_of(matrix, gate, up, silu, path=path), up_of(reference, gate, up, silu)
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=1e-30, equal_nan=True)


def test_the_reference_is_the_formula():
    gate, up = 20 * made(200), 20 * made(200, seed=1)
    got = activate(gate.clone(), up.clone(), Silu(alpha=1.7, shift=1.0, limit=7.0))
    low, within = gate.double().clamp(max=7.0), up.double().clamp(-7.0, 7.0)
    wanted = low / (1 + (-1.7 * low).exp()) * (within + 1.0)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-9)
    assert (gate > 7).any()
    assert (up < -7).any()


def test_the_plain_one_of_the_reference_has_the_bits_it_always_had():
    gate, up = made(3, 50), made(3, 50, seed=1)
    wanted = functional.silu(gate) * up
    assert same_bits(activate(gate, up, Silu()), wanted)


@needs_native
@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from(sorted(STORED)),
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=2),
    W=st.sampled_from([32, 96, 160]),
    silu=silus,
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    threads=st.integers(1, 3),
)
def test_experts_clamp_as_the_reference_does_whole_and_cut(form, rows, W, silu, scale, threads):
    D, memory = 64, torch.empty(1 << 21, dtype=torch.uint8)
    batches = [b._replace(x=b.x * scale) for b in layer(rows, D, 2, 3)]
    weights = [stored(D, W, form, 20 * e) for e in range(3)]
    whole, wanted = copied(batches), copied(batches)
    matrix.experts(whole, 0, weights, memory, silu=silu, path="exact", threads=threads)
    reference.experts(wanted, 0, weights, memory, silu=silu)
    for a, b in zip(whole, wanted, strict=True):
        assert (a.hidden - b.hidden).norm() <= 1e-5 * b.hidden.norm()

    halves = copied(batches)
    for e, w in enumerate(weights[:2]):  # nobody visits the last
        inter = torch.empty(sum(rows), W)
        matrix.expert_up(halves, e, w, inter, memory, silu=silu, path="exact")
        matrix.expert_down(halves, e, inter, w, slice(0, D), memory, path="exact")
    for a, b in zip(whole, halves, strict=True):
        assert same_bits(a.hidden, b.hidden)


@needs_native
@pytest.mark.parametrize("form", sorted(STORED))
@pytest.mark.parametrize("rows", [1, 70])
def test_the_plain_one_has_the_bits_of_limits_that_nothing_reaches(form, rows):
    batches, weights = layer([rows], 64, None, 1), [stored(64, 96, form, 0)]
    memory = torch.empty(1 << 21, dtype=torch.uint8)
    found = []
    for given_silu in ({}, {"silu": Silu()}, {"silu": Silu(limit=1e30)}, {"silu": GPT_OSS}):
        found.append(copied(batches))
        matrix.experts(found[-1], 0, weights, memory, **given_silu)
    plain, same, wide, other = (each[0].hidden for each in found)
    assert same_bits(plain, same)
    assert same_bits(plain, wide)
    assert not same_bits(plain, other)


@needs_native
def test_what_is_kept_for_one_is_not_used_for_another():
    batches, weights = layer([5], 64, None, 1), [stored(64, 96, "fp32", 0)]
    hidden, kept = batches[0].hidden, Kept()
    before, memory = hidden.clone(), torch.empty(1 << 20, dtype=torch.uint8)
    results = []
    for silu in (SILU, GPT_OSS, SILU):
        hidden.copy_(before)
        matrix.experts(batches, 0, weights, memory, silu=silu, kept=kept)
        results.append(hidden.clone())
    assert same_bits(results[0], results[2])
    assert not same_bits(results[0], results[1])


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.0}, {"alpha": float("nan")}, {"limit": 0.0}, {"shift": float("inf")}]
)
def test_what_is_no_activation_is_refused(wrong):
    with pytest.raises(ValueError, match="silu: expected finite"):
        Silu(**wrong)
