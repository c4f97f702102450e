"""Dimensions of models: derived sizes and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import UnsupportedModelError
from headrace.specs.model import ModelSpec

TINY = ModelSpec(
    architecture="mixtral", layers=2, hidden=8, heads=4, kv_heads=2, head_dim=4,
    ffn_width=6, vocab=11, experts=4, top_k=2,
)  # fmt: skip


def test_parameters_are_counted_by_hand():
    attention = 8 * 16 + 2 * 8 * 8 + 16 * 8
    layer = 2 * 8 + attention + 4 * 8 + 4 * 3 * 8 * 6
    assert TINY.parameters() == 2 * layer + 2 * 11 * 8 + 8
    assert TINY.parameters() - TINY.active_parameters() == 2 * 2 * 3 * 8 * 6


def test_switches_add_their_tensors():
    full = replace(
        TINY, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, tied_embeddings=True
    )
    assert full.layer_tensors()["k_bias"] == (8,)
    assert full.layer_tensors()["o_bias"] == (8,)
    assert full.layer_tensors()["q_norm"] == (16,)
    assert full.expert_tensors()["down_bias"] == (8,)
    assert "head" not in full.global_tensors()


def test_a_dense_model_is_one_expert_without_a_router():
    dense = replace(TINY, experts=1, top_k=1)
    assert not dense.is_moe
    assert "router" not in dense.layer_tensors()
    assert dense.active_parameters() == dense.parameters()


def test_kv_bytes_count_keys_and_values_of_all_layers():
    assert TINY.kv_bytes_per_token("f16") == 2 * 2 * 8 * 2
    assert TINY.kv_bytes_per_token("f32") == 2 * TINY.kv_bytes_per_token("f16")


@pytest.mark.parametrize(
    "change",
    [{"layers": 0}, {"kv_heads": 3}, {"top_k": 5}, {"weight_dtype": "int3"}, {"vocab": -1}],
)
def test_impossible_dimensions_are_refused(change):
    with pytest.raises(UnsupportedModelError):
        replace(TINY, **change)
