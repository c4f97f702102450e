"""Integer weights: the stored layout, the arithmetic of both paths, and law 10 for them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.native import matrix
from headrace.kernels.quantized import QuantizedWeight, quantize
from headrace.kernels.routed import Routed
from tests.kernels.native.test_matrix import (
    check_any_company,
    copied,
    layer,
    made,
    product,
    same_bits,
    unaligned,
)

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

INTEGER_PATHS = ("avx512_vnni", "avx_vnni", "avx2", "plain")
EXACT_PATHS = ("exact_avx512", "exact_avx2", "exact_plain")


def here(names):
    found = []
    for name in names if native.available() else ():
        try:
            found += [name] if matrix.path_of("i8", name) == name else []
        except ValueError:
            continue
    return found


INTEGER, EXACT = here(INTEGER_PATHS), here(EXACT_PATHS)

# bits, group (None: one scale per row), packed, symmetric
SCHEMES = [
    (8, None, False, True),
    (8, 32, False, False),
    (8, 64, True, True),
    (8, 128, True, False),
    (4, 32, True, True),
    (4, 64, True, False),
    (4, 128, True, True),
    (4, 256, True, False),
]
schemes = st.sampled_from(SCHEMES)


def weight_of(n, k, scheme, seed=1, dtype=torch.float32):
    bits, group, packed, symmetric = scheme
    return quantize(made(n, k, seed=seed) * k**-0.5, bits, group, packed=packed,
                    symmetric=symmetric, scale_dtype=dtype)  # fmt: skip


def moved(weight: QuantizedWeight) -> QuantizedWeight:
    """The same weight, each part one element off whatever alignment it had."""
    zeros = weight.zero_point
    return replace(
        weight,
        values=unaligned(weight.values),
        scale=unaligned(weight.scale),
        zero_point=None if zeros is None else unaligned(zeros),
    )


def columns_of(scheme, blocks):
    return blocks * (scheme[1] or 1)


def rounded(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Activations as the integer path sees them: 8 bits for each row and block of columns."""
    block, k = min(weight.group, 64), x.shape[1]
    padded = torch.zeros(x.shape[0], -(-k // block) * block)
    padded[:, :k] = x
    blocks = padded.view(x.shape[0], -1, block)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.where(scale > 0, 1.0)).round() * scale).view(x.shape[0], -1)[:, :k]


def test_packed_words_hold_the_first_column_in_their_low_bits():
    weight = quantize(torch.tensor([[7.0, -7, 0, 1, 2, 3, 4, 5]]), 4)
    word = int(weight.values[0, 0]) & 0xFFFFFFFF
    assert [word >> 4 * i & 15 for i in range(8)] == [15, 1, 8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_is_within_half_a_step(scheme):
    weight = made(9, 256)
    bits, group, packed, symmetric = scheme
    got = quantize(weight, bits, group, packed=packed, symmetric=symmetric)
    step = got.scale.repeat_interleave(got.group, 1)
    assert got.shape == (9, 256)
    assert ((got.dequantized() - weight).abs() <= step * (0.5 if symmetric else 1.01) + 1e-6).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_a_weight_are_the_rows_of_its_values(scheme):
    weight = weight_of(32, columns_of(scheme, 2) * (1 if scheme[1] else 40), scheme)
    assert torch.equal(weight[8:24].dequantized(), weight.dequantized()[8:24])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="quantized weight: expected"):
        QuantizedWeight(torch.zeros(3, 8, dtype=torch.int8), torch.ones(3, 3), 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        weight_of(32, 64, (4, 64, True, False))[3:20]
    x, tile, out = made(2, 48), torch.empty(4096), torch.empty(2, 4)
    with pytest.raises(ValueError, match="group: expected 32"):
        matrix.linear(x, weight_of(4, 48, (8, 16, False, True)), out, tile)
    odd = weight_of(4, 48, (8, None, False, True))
    for part in ({"values": odd.values.T.contiguous().T}, {"scale": odd.scale.double()},
                 {"values": odd.values.to(torch.int16)}):  # fmt: skip
        with pytest.raises(TypeError, match="quantized weight: expected"):
            matrix.linear(x, QuantizedWeight(**{"values": odd.values, "scale": odd.scale,
                          "columns": 48} | part), out, tile)  # fmt: skip
    zeros = torch.zeros(4, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="zero_point: expected"):
        matrix.linear(x, QuantizedWeight(odd.values, odd.scale, 48, 8, zeros), out, tile)


@settings(max_examples=150, deadline=None)
@given(
    scheme=schemes,
    path=st.sampled_from(INTEGER or ["none"]),
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    blocks=st.integers(1, 9),
    odd=st.integers(1, 200),
    threads=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_integer_path_multiplies_rounded_activations(scheme, path, m, n, blocks, odd, threads,
                                                     dtype):  # fmt: skip
    k = columns_of(scheme, blocks) if scheme[1] else odd
    x, weight, bias = unaligned(made(m, k)), moved(weight_of(n, k, scheme, dtype=dtype)), made(n)
    got = product(x, weight, bias, path=path, threads=threads)
    wanted = rounded(x, weight).double() @ weight.dequantized().double().T + bias
    torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=2e-5)


@settings(max_examples=80, deadline=None)
@given(
    scheme=schemes,
    path=st.sampled_from(EXACT or ["none"]),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    blocks=st.integers(1, 12),
    odd=st.integers(1, 200),
)
def test_exact_path_multiplies_activations_as_they_are(scheme, path, m, n, blocks, odd):
    k = columns_of(scheme, blocks) if scheme[1] else odd
    x, weight = unaligned(made(m, k)), moved(weight_of(n, k, scheme))
    wanted = x.double() @ weight.dequantized().double().T
    got = product(x, weight, path=path, threads=2)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    if path == EXACT[0]:
        torch.testing.assert_close(product(x, weight, path="exact"), got, atol=0, rtol=0)


@settings(max_examples=80, deadline=None)
@given(
    scheme=schemes,
    path=st.sampled_from(INTEGER + EXACT or ["none"]),
    m=st.integers(1, 40),
    n=st.integers(1, 70),
    blocks=st.integers(1, 9),
    data=st.data(),
)
def test_a_row_has_the_same_bits_in_any_company(scheme, path, m, n, blocks, data):
    k = columns_of(scheme, blocks) if scheme[1] else 70 * blocks
    check_any_company(made(m, k), weight_of(n, k, scheme), path, data, moved)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", INTEGER + EXACT)
@pytest.mark.parametrize("blocks", [5, 17])
def test_bits_do_not_depend_on_rows(scheme, path, blocks):
    k = columns_of(scheme, blocks) if scheme[1] else 70 * blocks
    x, weight = made(150, k), weight_of(83, k, scheme)
    whole = product(x, weight, path=path, threads=2, scratch=400 * k)
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 32, 33, 48):
        assert same_bits(product(x[:m], weight, path=path, scratch=64 * k + 8192), whole[:m]), m
    for row in (7, 149):
        assert same_bits(product(x[row : row + 1], weight, path=path), whole[row : row + 1])


@pytest.mark.parametrize("path", INTEGER + EXACT)
@pytest.mark.parametrize("m", [1, 6, 9])
def test_many_weight_rows_have_the_bits_of_few(path, m):
    """A task may take hundreds of rows, some after the other."""
    x, weight = made(m, 512), weight_of(1304, 512, (4, 64, True, False))
    whole = product(x, weight, path=path, threads=2)
    few = [product(x, weight[i : i + 88], path=path) for i in range(0, 1304, 88)]
    assert same_bits(whole, torch.cat(few, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", INTEGER + EXACT)
def test_what_is_not_finite_stays_in_its_row(scheme, path):
    k = columns_of(scheme, 2) if scheme[1] else 70
    x, weight = made(21, k), weight_of(19, k, scheme)
    clean = product(x, weight, path=path)
    x[3, 7], x[5, k - 1], x[6] = float("nan"), float("inf"), 0.0
    got = product(x, weight, path=path)
    assert got[3].isnan().all()
    assert not got[5].isfinite().any()
    assert (got[6] == 0).all()
    kept = [i for i in range(21) if i not in (3, 5, 6)]
    assert same_bits(got[kept], clean[kept])


@pytest.mark.parametrize("path", INTEGER + EXACT)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(path, scale):
    scheme = (4, 32, True, False)
    x, weight = made(6, 96) * scale, weight_of(20, 96, scheme)
    wanted = rounded(x / scale, weight).double() @ weight.dequantized().double().T
    got = product(x, weight, path=path).double() / scale
    assert (got - wanted).norm() / wanted.norm() < 0.02


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", INTEGER + EXACT)
def test_quantized_experts_are_close_whole_and_cut(scheme, path):
    group = scheme[1] or 32
    D, W, memory = 2 * group, 3 * group, torch.empty(1 << 22, dtype=torch.uint8)
    shapes = {"gate": (W, D), "up": (W, D), "down": (D, W)}
    weights = {n: weight_of(*s, scheme, seed=i) for i, (n, s) in enumerate(shapes.items())}
    batches = layer([5, 40], D, 2, 3)
    whole, parts, wanted = copied(batches), copied(batches), copied(batches)
    matrix.experts(whole, 1, [weights], memory, path=path, threads=2)
    reference.experts(wanted, 1, [weights], memory)
    for a, b in zip(whole, wanted, strict=True):
        error = (a.hidden - b.hidden).norm() / b.hidden.norm()
        assert error < (1e-5 if path in EXACT else 0.02)

    inter = torch.full((50, W), float("nan"))
    for a, b in itertools.pairwise((0, group, W)):
        part = {n: weights[n][a:b] for n in ("gate", "up")}
        ups = [p._replace(hidden=None) for p in parts]
        matrix.expert_up(ups, 1, part, inter[:, a:b], memory, path=path)
    for a, b in itertools.pairwise((0, 16, D)):
        downs = [p._replace(x=None) for p in parts]
        matrix.expert_down(downs, 1, inter, {"down": weights["down"][a:b]}, slice(a, b), memory,
                           path=path)  # fmt: skip
    for a, b in zip(whole, parts, strict=True):
        assert same_bits(a.hidden, b.hidden)


def test_fast_and_auto_paths_fall_back_on_what_there_is():
    assert matrix.path_of("i8", "auto") == INTEGER[0]
    assert matrix.path_of("u4", "fast") == INTEGER[0]
    assert matrix.path_of(torch.float32, "exact") == matrix.path_of(torch.float32)
    batch = Routed(1, torch.ones(1, 32), torch.zeros(1, 32), None)
    same = torch.eye(32)
    for path in ("auto", "fast", "exact"):
        fresh = batch._replace(hidden=torch.zeros(1, 32))
        matrix.experts([fresh], 0, [{"gate": same, "up": same, "down": same}],
                       torch.empty(1 << 16, dtype=torch.uint8), path=path)  # fmt: skip
        torch.testing.assert_close(fresh.hidden, torch.nn.functional.silu(torch.ones(1, 32)))
