"""Experts of one call: multiplied together where memory allows, with the bits of one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.native import matrix
from headrace.kernels.quantized import quantize
from tests.kernels.native.test_matrix import copied, expert_weights, layer, made, same_bits

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

STORED = {
    "fp32": lambda w: w,
    "bf16": lambda w: w.bfloat16(),
    "fp16": lambda w: w.half(),
    "int8": lambda w: quantize(w, 8),
    "int8, groups and zeros": lambda w: quantize(w, 8, 32, packed=True, symmetric=False),
    "int4": lambda w: quantize(w, 4, 32),
}


def stored(D, W, form, seed):
    weights = expert_weights(D, W, torch.float32, seed, False)
    return {name: STORED[form](w) for name, w in weights.items()}


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(sorted(STORED)),
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    experts=st.integers(2, 12),
    D=st.sampled_from([32, 96, 160]),
    W=st.sampled_from([32, 64, 224]),
    k=st.integers(1, 3),
    spare=st.sampled_from([0, 1 << 12, 1 << 15, 1 << 20]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_one_call_has_the_bits_of_a_call_for_each(
    form, rows, experts, D, W, k, spare, threads, data
):
    batches = layer(rows, D, min(k, experts - 1), experts)
    weights = [stored(D, W, form, 20 * e) for e in range(experts)]
    first = data.draw(st.integers(0, experts - 1))
    together, apart = copied(batches), copied(batches)
    memory = torch.empty((1 << 16) + spare, dtype=torch.uint8)  # a granule of rows, and more
    matrix.experts(together, first, weights[first:], memory, threads=threads)
    for e in range(first, experts):
        matrix.experts(apart, e, [weights[e]], torch.empty(1 << 18, dtype=torch.uint8))
    for a, b in zip(together, apart, strict=True):
        assert same_bits(a.hidden, b.hidden)


HALVES = [
    *((form, form, "auto", W) for form in STORED for W in (32, 96, 224, 352)),
    *(("int8", "int8", "auto", W) for W in (1, 75, 130)),  # a scale for a row: any width
    *(("bf16", "bf16", "bf16", W) for W in (1, 75, 224, 352)),
    *((form, down, "bf16", 96) for form, down in (("int8", "int4"), ("int8", "bf16"))),
]


@pytest.mark.parametrize(("form", "down", "path", "W"), HALVES)
@pytest.mark.parametrize(
    ("rows", "memory"), [(1, 1 << 21), (13, 1 << 21), (83, 1 << 21), (200, 1 << 16)]
)
def test_one_call_has_the_bits_of_its_halves_over_fp32_rows(form, down, path, W, rows, memory):
    # One call may pack what lies between as it is made; halves keep it as rows and pack it later.
    # The least memory is for several blocks of rows.
    [batch] = layer([rows], 96, None, 1)
    weights = stored(96, W, form, 0) | {"down": stored(96, W, down, 0)["down"]}
    scratch = torch.empty(memory, dtype=torch.uint8)
    whole, halves = copied([batch]), copied([batch])
    matrix.experts(whole, 0, [weights], scratch, threads=2, path=path)
    inter = torch.empty(rows, W)
    matrix.expert_up(halves, 0, weights, inter, scratch, path=path)
    matrix.expert_down(halves, 0, inter, weights, slice(0, 96), scratch, path=path)
    assert same_bits(whole[0].hidden, halves[0].hidden)


@pytest.mark.parametrize("form", sorted(STORED))
@pytest.mark.parametrize("path", ["auto", "exact", "bf16"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_reaches_the_experts_of_its_row_only(form, path, bad):
    batches = layer([6], 64, 2, 8)
    weights = [stored(64, 96, form, 20 * e) for e in range(8)]
    memory = torch.empty(1 << 20, dtype=torch.uint8)
    clean = copied(batches)
    matrix.experts(clean, 0, weights, memory, threads=2, path=path)
    x = batches[0].x.clone()
    x[4, 7] = bad
    spoilt = copied([batches[0]._replace(x=x)])
    matrix.experts(spoilt, 0, weights, memory, threads=2, path=path)
    assert not spoilt[0].hidden[4].isfinite().any()
    kept = [0, 1, 2, 3, 5]
    assert same_bits(spoilt[0].hidden[kept], clean[0].hidden[kept])


@pytest.mark.parametrize("form", sorted(STORED))
@pytest.mark.parametrize("path", ["auto", "exact"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_experts_at_extreme_scales(form, path, scale):
    [batch] = layer([7], 64, 2, 3)
    batch = batch._replace(x=batch.x * scale, hidden=torch.zeros(7, 64))
    weights = [stored(64, 96, form, 20 * e) for e in range(3)]
    memory = torch.empty(1 << 20, dtype=torch.uint8)
    got, wanted = copied([batch]), copied([batch])
    matrix.experts(got, 0, weights, memory, threads=2, path=path)
    reference.experts(wanted, 0, weights, memory)
    rounds = path == "auto" and form.startswith("int")
    error = (got[0].hidden.double() - wanted[0].hidden.double()).norm()
    assert error < (0.04 if rounds else 1e-5) * wanted[0].hidden.double().norm()


def test_down_may_be_stored_unlike_gate_and_up_but_those_two_are_alike():
    batches = layer([5], 64, None, 1)
    floats, integers = stored(64, 96, "fp32", 0), stored(64, 96, "int8", 0)
    memory = torch.empty(1 << 20, dtype=torch.uint8)
    mixed, wanted = copied(batches), copied(batches)
    matrix.experts(mixed, 0, [floats | {"down": integers["down"]}], memory)
    matrix.experts(wanted, 0, [floats], memory)
    error = (mixed[0].hidden - wanted[0].hidden).norm() / wanted[0].hidden.norm()
    assert 0 < error < 0.02
    with pytest.raises(ValueError, match="gate and up: expected one format"):
        matrix.experts(mixed, 0, [floats | {"up": integers["up"]}], memory)
    for rows, columns in ((96, 64), (96, 96), (64, 64)):
        down = stored(rows, columns, "fp32", 0)["down"]
        with pytest.raises(ValueError, match=rf"down \[64, 96\].*got \[{rows}, {columns}\]"):
            matrix.experts(mixed, 0, [floats | {"down": down}], memory)
    inter = made(5, 96)
    shorter = {"up": stored(64, 95, "fp32", 0)["up"]}
    for other in (integers | {"up": floats["up"]}, floats | shorter):
        with pytest.raises(ValueError, match="gate and up: expected one format"):
            matrix.expert_up(mixed, 0, other, inter, memory)


def test_experts_of_one_list_have_one_width():
    batches = layer([5], 64, 2, 2)
    memory = torch.empty(1 << 20, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one width"):
        matrix.experts(batches, 0, [stored(64, 96, "fp32", 0), stored(128, 96, "fp32", 0)], memory)
