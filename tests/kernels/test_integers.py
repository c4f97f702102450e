"""Integer weights in torch: packing, rounding, the search for scales, activations of 8 bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels import reference
from headrace.kernels.quantized import quantize, rounded
from headrace.specs.scratch import tile_elements


def made(rows, columns, seed=3):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 20), blocks=st.integers(1, 3))
def test_words_hold_the_first_in_their_low_bits_along_columns_and_zeros_along_rows(
    bits, rows, blocks
):
    weight = made(rows, 32 * blocks) + 0.3
    got = quantize(weight, bits, 32, packed=True, symmetric=False)
    per, mask = 32 // bits, 2**bits - 1
    integers = torch.empty(rows, 32 * blocks)
    for column in range(32 * blocks):
        words = got.values[:, column // per].long()
        integers[:, column] = (words >> bits * (column % per)) & mask
    zeros = torch.empty(rows, blocks)
    for row in range(rows):
        zeros[row] = ((got.zero_point[row // per].long() >> bits * (row % per)) & mask).float()
    grouped = integers.view(rows, blocks, 32) - zeros[..., None]
    wanted = (grouped * got.scale[..., None]).view(rows, -1)
    assert torch.equal(got.dequantized(), wanted)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_never_leaves_more_error_in_a_group(bits, symmetric):
    weight = made(40, 256)
    weight[:, 7] *= 6  # outliers
    plain, found = (
        quantize(weight, bits, 64, packed=True, symmetric=symmetric, search=s)
        for s in (False, True)
    )
    before, after = (
        (q.dequantized() - weight).square().view(40, 4, 64).sum(-1) for q in (plain, found)
    )
    assert (after <= before * (1 + 1e-5)).all()
    if bits == 4:
        assert after.sum() < 0.97 * before.sum()


def test_scales_in_16_bits_are_what_integers_are_rounded_for():
    weight = made(16, 64)
    got = quantize(weight, 4, 32, scale_dtype=torch.bfloat16)
    step = got.scale.float().repeat_interleave(32, 1)
    assert ((got.dequantized() - weight).abs() <= step * 0.53).all()


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 300), group=st.sampled_from([32, 64, 128, 300])
)
def test_activations_keep_8_bits_of_each_block(rows, columns, group):
    x = made(rows, columns)
    got = rounded(x, group)
    assert got.shape == x.shape
    for start in range(0, columns, min(group, 64)):
        block, kept = (t[:, start : start + min(group, 64)] for t in (x, got))
        step = block.abs().amax(-1, keepdim=True) / 127
        assert ((block - kept).abs() <= 0.501 * step).all()
        assert torch.allclose((kept / step).round(), kept / step, atol=1e-3)


def test_rows_that_are_zero_or_not_finite_stay_so():
    x = made(4, 64)
    x[0], x[1, 3], x[2, 40] = 0.0, torch.nan, torch.inf
    got = rounded(x, 32)
    assert (got[0] == 0).all()
    assert got[1, :32].isnan().all()
    assert not got[2, 32:].isfinite().any()
    assert got[3].isfinite().all()
    assert got[2, :32].isfinite().all()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_the_reference_multiplies_with_rounded_or_exact_rows(activations, accumulate):
    x, weight = made(9, 128), quantize(made(700, 128, 5), 4, 64, symmetric=False)
    start, bias = made(9, 700, 6), made(1, 700, 7)[0]
    out, tile = start.clone(), torch.empty(tile_elements(700, 128))
    reference.linear(x, weight, out, tile, bias, accumulate, activations)
    met = rounded(x, 64) if activations == "int8" else x
    wanted = met @ weight.dequantized().T + bias + (start if accumulate else 0)
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_reference_rounds_rows_to_bf16_for_weights_in_bf16_alone(dtype):
    x, weight, tile = made(900, 96), made(40, 96, 5).to(dtype), torch.empty(tile_elements(40, 96))
    out = torch.empty(900, 40)
    reference.linear(x, weight, out, tile, activations="bf16")
    met = x.bfloat16().float() if dtype == torch.bfloat16 else x
    torch.testing.assert_close(out, met @ weight.float().T, atol=1e-4, rtol=1e-5)
    assert (out - x @ weight.float().T).abs().max() > 1e-3 or dtype != torch.bfloat16
