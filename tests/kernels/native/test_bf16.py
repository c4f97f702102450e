"""bf16 weights with activations rounded to bf16: close to the definition, and law 10."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.native import matrix
from headrace.specs.scratch import tile_elements
from tests.kernels.native.test_matrix import (
    check_any_company,
    copied,
    expert_weights,
    layer,
    made,
    product,
    same_bits,
    unaligned,
)

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

ALL = ("amx_bf16", "avx512_bf16", "rounded_avx512", "rounded_avx2", "rounded_neon", "rounded_plain")


def here():
    found = []
    for name in ALL if native.available() else ():
        try:
            found += [name] if matrix.path_of(torch.bfloat16, name) == name else []
        except ValueError:
            continue
    return found


PATHS = here()
paths = st.sampled_from(PATHS or ["none"])
sizes = st.integers(1, 40) | st.sampled_from([63, 64, 65, 97, 130])
columns = st.integers(1, 100) | st.sampled_from([1023, 1024, 1025, 1056, 2080, 3100])


def weight_of(n, k, seed=1):
    return (made(n, k, seed=seed) * k**-0.5).bfloat16()


@settings(max_examples=120, deadline=None)
@given(path=paths, m=sizes, n=sizes, k=columns, threads=st.integers(1, 3), bias=st.booleans())
def test_rounded_rows_are_multiplied(path, m, n, k, threads, bias):
    x, weight = unaligned(made(m, k)), unaligned(weight_of(n, k))
    b = made(n, seed=2).bfloat16() if bias else None
    wanted = x.bfloat16().double() @ weight.double().T + (0 if b is None else b.double())
    got = product(x, weight, b, path=path, threads=threads)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_rounding_is_to_nearest_with_ties_to_even(path):
    x = torch.tensor([[1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 1 + 1.001 / 256, 3e38, 1e-37]])
    got = product(x, torch.eye(6).bfloat16(), path=path)
    assert torch.equal(got, x.bfloat16().float())


@settings(max_examples=120, deadline=None)
@given(path=paths, m=sizes, n=sizes, k=columns, data=st.data())
def test_a_row_has_the_same_bits_in_any_company(path, m, n, k, data):
    x, weight = made(m, k), weight_of(n, k)
    check_any_company(x, weight, path, data)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [70, 1024, 2080])
def test_bits_do_not_depend_on_rows_for_any_tile_shape(path, k):
    x, weight = made(300, k), weight_of(101, k)
    whole = product(x, weight, path=path, threads=2, scratch=300 * 2 * k)
    for m in (*range(1, 18), 20, 32, 33, 48, 130):
        assert same_bits(product(x[:m], weight, path=path), whole[:m]), m


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("m", [1, 2, 4, 6, 9, 65])
@pytest.mark.parametrize("k", [490, 1100])
def test_many_weight_rows_have_the_bits_of_few(path, m, k):
    """A task may take hundreds of rows, some after the other; short ones are read in order."""
    x, weight, bias = made(m, k), weight_of(1301, k), made(1301, seed=2)
    few = [product(x, weight[i : i + 90], bias[i : i + 90], path=path) for i in range(0, 1301, 90)]
    assert same_bits(product(x, weight, bias, path=path, threads=2), torch.cat(few, 1))


@pytest.mark.parametrize("path", PATHS)
def test_strided_rows_accumulate_in_place_and_touch_nothing_else(path):
    x, weight = made(9, 40)[:, 3:36], weight_of(29, 33)
    wide = torch.full((9, 50), 7.0)
    out, tile = wide[:, 10:39], torch.empty(tile_elements(29, 33))
    matrix.linear(x, weight, out, tile, path=path)
    once = out.clone()
    matrix.linear(x, weight, out, tile, accumulate=True, path=path)
    torch.testing.assert_close(out, 2 * once, atol=1e-6, rtol=1e-6)
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 39:] == 7).all()


@pytest.mark.parametrize("path", PATHS)
def test_no_rows_and_no_columns(path):
    assert product(made(0, 5), weight_of(3, 5), path=path).shape == (0, 3)
    none = made(3, 0).bfloat16()
    assert (product(made(4, 0), none, path=path, scratch=4096) == 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_nan_and_infinity_stay_in_their_rows(path):
    x, weight = made(21, 50), weight_of(19, 50)
    clean = product(x, weight, path=path)
    x[3, 7], x[5, 49], x[20, 0] = float("nan"), float("inf"), -float("inf")
    got = product(x, weight, path=path)
    wanted = x @ weight.float().T
    assert got[3].isnan().all()
    assert torch.equal(got[5], wanted[5])  # an infinity of every sign
    assert torch.equal(got[20], wanted[20])
    kept = [i for i in range(21) if i not in (3, 5, 20)]
    assert same_bits(got[kept], clean[kept])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_scales_keep_their_precision(path, scale):
    x, weight = made(6, 300) * scale, (made(20, 300, seed=1) * 0.05).bfloat16()
    wanted = x.bfloat16().double() @ weight.double().T
    got = product(x, weight, path=path).double()
    assert ((got - wanted).norm() / wanted.norm()) < 5e-6


def test_weights_in_other_formats_meet_what_they_always_met():
    assert matrix.path_of(torch.bfloat16, "bf16") == PATHS[0]
    x = made(5, 96)
    for dtype in (torch.float32, torch.float16):
        weight = made(7, 96, seed=1).to(dtype)
        assert matrix.path_of(dtype, "bf16") == matrix.path_of(dtype)
        assert same_bits(product(x, weight, path="bf16"), product(x, weight))
    assert matrix.path_of("i8", "bf16") == matrix.path_of("i8")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dense", [True, False])
def test_experts_are_close_to_the_reference_whole_and_cut(path, dense):
    D, W, memory = 70, 90, torch.empty(1 << 20, dtype=torch.uint8)
    batches = layer([5, 40], D, None if dense else 2, 3)
    weights = expert_weights(D, W, torch.bfloat16, 20, True)
    whole, parts, wanted = copied(batches), copied(batches), copied(batches)
    number = 0 if dense else 1
    matrix.experts(whole, number, [weights], memory, path=path, threads=2)
    reference.experts(wanted, number, [weights], memory, "bf16")
    for a, b in zip(whole, wanted, strict=True):
        # Apart where what lies between falls on the other side of an edge of two bf16.
        assert (a.hidden - b.hidden).norm() / b.hidden.norm() < 1e-3

    inter = torch.full((50, W), float("nan"))
    for a, b in itertools.pairwise((0, 17, 40, W)):
        part = {n: weights[n][a:b] for n in ("gate", "up", "gate_bias", "up_bias")}
        ups = [p._replace(hidden=None) for p in parts]
        matrix.expert_up(ups, number, part, inter[:, a:b], memory, path=path)
    for a, b in itertools.pairwise((0, 33, D)):
        downs = [p._replace(x=None) for p in parts]
        part = {n: weights[n][a:b] for n in ("down", "down_bias")}
        matrix.expert_down(downs, number, inter, part, slice(a, b), memory, path=path)
    for a, b in zip(whole, parts, strict=True):
        assert same_bits(a.hidden, b.hidden)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_gets_the_same_bits_whoever_shares_its_experts(path):
    D, W, memory = 70, 90, torch.empty(1 << 22, dtype=torch.uint8)
    weights = [expert_weights(D, W, torch.bfloat16, 20, True)]
    batches = layer([600, 7], D, None, 1)
    together, alone = copied(batches), copied(batches)
    matrix.experts(together, 0, weights, memory, path=path, threads=2)
    for batch, whole in zip(alone, together, strict=True):
        for row in (0, 3, batch.rows - 1):
            one = batch._replace(
                rows=1, x=batch.x[row : row + 1], hidden=batch.hidden[row : row + 1]
            )
            matrix.experts([one], 0, weights, memory, path=path)
            assert same_bits(one.hidden[0], whole.hidden[row])
