"""Weights turned in memory: the layout, and the bits of every result, which are those of weights as
they were stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels import native
from headrace.kernels.native import matrix
from headrace.kernels.quantized import QuantizedWeight, quantize
from headrace.kernels.routed import Routed, Routing
from headrace.kernels.turned import TurnedWeight
from tests.kernels.native.test_matrix import DTYPES, made, product, same_bits
from tests.kernels.native.test_quantized import SCHEMES, weight_of


def turns(path: str) -> bool:
    """Whether this processor's ``path`` reads turned fp16 weights (bf16 may go by tiles)."""
    return native.available() and isinstance(
        matrix.turn(torch.zeros(16, 32, dtype=torch.float16), path=path), TurnedWeight
    )


pytestmark = pytest.mark.skipif(
    not turns("auto"), reason="no kernels here that read turned weights"
)

LINE = 64
lines = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 17, 33])  # of 64 bytes, in a row
scale_formats = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
rows = st.sampled_from([16, 17, 31, 32, 48, 70, 112, 208])


def weight(form, n, columns, seed=1, scales=torch.float32):
    if isinstance(form, torch.dtype):
        return (made(n, columns, seed=seed) / 8).to(form)
    return weight_of(n, columns, form, seed=seed, dtype=scales)


def columns_of(form, row_lines):
    """Columns of rows of so many lines, or of the few more that a group of them takes."""
    if isinstance(form, torch.dtype):
        return row_lines * LINE // form.itemsize
    bits, group, *_ = form
    step = max(group or 1, LINE * 8 // bits)
    return -(-row_lines * LINE * 8 // bits // step) * step


def copy_of(weight):
    if isinstance(weight, QuantizedWeight):
        return QuantizedWeight(weight.values.clone(), weight.scale.clone(), weight.columns,
                               weight.bits, weight.zero_point)  # fmt: skip
    return weight.clone()


def turned_here():
    """The forms whose kernels here read turned weights: integers take VNNI, say."""
    if not turns("auto"):
        return [None]  # nothing of this file runs
    every = [*DTYPES, *SCHEMES]
    return [
        f for f in every if isinstance(matrix.turn(weight(f, 16, columns_of(f, 1))), TurnedWeight)
    ]


forms = st.sampled_from(turned_here())


@settings(max_examples=60, deadline=None)
@given(form=forms, m=st.integers(1, 70), n=rows, row_lines=lines, threads=st.integers(1, 3),
       few=st.booleans(), scales=scale_formats)  # fmt: skip
def test_products_keep_their_bits(form, m, n, row_lines, threads, few, scales):
    stored = weight(form, n, columns_of(form, row_lines), scales=scales)
    turned = matrix.turn(copy_of(stored), threads=threads)
    assert isinstance(turned, TurnedWeight)
    assert turned.shape == tuple(stored.shape)
    x = made(1 + m % 4 if few else m, stored.shape[1], seed=2)
    assert same_bits(product(x, turned, threads=threads), product(x, stored))


@settings(max_examples=25, deadline=None)
@given(form=forms, m=st.integers(1, 20), threads=st.integers(1, 3), count=st.integers(1, 3))
def test_experts_keep_their_bits(form, m, threads, count):
    """Of one expert, and of several that are multiplied together."""
    width, hidden = 256, columns_of(form, 8)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    experts = [
        {
            name: weight(form, *shape, seed=3 * e + i)
            for i, (name, shape) in enumerate(shapes.items())
        }
        for e in range(count)
    ]
    turned = [{k: matrix.turn(copy_of(w), threads=threads) for k, w in e.items()} for e in experts]
    assert all(isinstance(w, TurnedWeight) for e in turned for w in e.values())
    x, routing = made(m, hidden, seed=4), routed(m, count)
    results = []
    for weights in (experts, turned):
        out, memory = torch.zeros_like(x), torch.empty(1 << 21)
        matrix.experts([Routed(m, x, out, routing)], 0, weights, memory, threads=threads)
        results.append(out)
    assert same_bits(*results)


def routed(m, count):
    """Every row visits every expert."""
    rows, gates = torch.arange(m, dtype=torch.int32).repeat(count), torch.full((m * count,), 0.5)
    starts = torch.arange(count + 1) * m
    return Routing(rows.view(count, m).T, gates.view(count, m).T, rows, gates, starts)


def test_sixteen_rows_lie_word_by_word_and_leftovers_as_stored():
    memory = made(40, 64).to(torch.float16)
    before = memory.view(torch.int32).clone()
    matrix.turn(memory)
    after = memory.view(torch.int32)
    groups = before[:32].view(2, 16, 2, 16)  # [group, row, line, word]
    assert torch.equal(after[:32].flatten(), groups.permute(0, 2, 3, 1).flatten())
    assert torch.equal(after[32:], before[32:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_of_sixteen_rows_lie_group_by_group_and_leftovers_as_stored(dtype):
    stored = quantize(made(40, 256), 4, 32, scale_dtype=dtype)
    before = stored.scale.clone()
    if not isinstance(matrix.turn(stored), TurnedWeight):
        pytest.skip("no kernels here that read turned integers")
    turned = before[:32].view(2, 16, 8).transpose(1, 2)  # [sixteen rows, group, row]
    assert torch.equal(stored.scale[:32].flatten(), turned.flatten())
    assert torch.equal(stored.scale[32:], before[32:])


@pytest.mark.parametrize("shape", [(15, 32), (16, 33), (64, 31)])
def test_what_has_no_whole_groups_or_lines_stays_as_it_is(shape):
    stored = made(*shape).to(torch.float16)
    before = stored.clone()
    assert matrix.turn(stored) is stored
    assert torch.equal(stored, before)


@pytest.mark.parametrize("path", ["avx2", "plain"])
def test_paths_that_read_rows_neither_turn_nor_take_turned_weights(path):
    stored = made(16, 32).to(torch.float16)
    assert matrix.turn(stored, path=path) is stored
    turned, x = matrix.turn(stored), made(2, 32)
    with pytest.raises(ValueError, match="turned"):
        product(x, turned, path=path)
    weights = dict.fromkeys(("gate", "up", "down"), turned)
    batch, inter, memory = Routed(2, x, None, None), torch.empty(2, 16), torch.empty(1 << 20)
    with pytest.raises(ValueError, match="turned"):
        matrix.expert_up([batch], 0, weights, inter, memory, path=path)
