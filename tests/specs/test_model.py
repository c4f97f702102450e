"""Dimensions of models: derived sizes and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import UnsupportedModelError
from headrace.specs.model import Mla, ModelSpec, Router, SharedExpert

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


def test_a_shared_expert_is_one_more_that_every_row_of_a_routed_layer_visits():
    spec = replace(TINY, shared=SharedExpert(10, gated=True), dense_layers=1, dense_width=20)
    assert spec.expert_tensors(0)["gate"] == (20, 8)
    assert "router" not in spec.layer_tensors(0)
    assert (spec.experts_in(0), spec.visits_in(0)) == (1, 1)
    assert (spec.experts_in(1), spec.visits_in(1)) == (5, 3)
    assert spec.expert_tensors(1, 3)["gate"] == (6, 8)
    assert spec.expert_tensors(1, 4)["gate"] == (10, 8)
    assert spec.layer_tensors(1)["shared_gate"] == (1, 8)
    assert [spec.visited_by_all(1, e) for e in (3, 4)] == [False, True]
    assert spec.visited_by_all(0, 0)
    assert spec.widest == 20
    dense, shared, one = 3 * 8 * 20, 3 * 8 * 10, 3 * 8 * 6
    others = TINY.parameters() - 2 * 4 * one - 4 * 8  # one layer has no router
    assert spec.parameters() == others + dense + 4 * one + shared + 8
    assert spec.active_parameters() == others + dense + 2 * one + shared + 8


def test_latent_attention_caches_one_vector_per_token():
    spec = replace(TINY, kv_heads=4, mla=Mla(6, 2, nope_dim=4, v_dim=3, q_rank=5))
    shapes = spec.layer_tensors()
    assert shapes["q_a"] == (5, 8)
    assert shapes["q"] == (4 * 6, 5)
    assert shapes["kv_a"] == (8, 8)
    assert shapes["kv_b"] == (4 * 7, 6)
    assert shapes["o"] == (8, 12)
    assert (spec.q_size, spec.attended_size, spec.kv_elements) == (24, 12, 8)
    assert spec.kv_bytes_per_token("f16") == 2 * 8 * 2
    assert replace(spec, mla=Mla(6, 2, 4, 3)).layer_tensors()["q"] == (24, 8)


def test_experts_may_be_stored_in_fewer_bits():
    assert replace(TINY, expert_dtype="mxfp4").expert_bytes(64) == 34
    assert replace(TINY, expert_dtype="mxfp4").expert_bytes(64, matrix=False) == 128
    assert TINY.expert_bytes(64) == 128


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"kv_heads": 3},
        {"top_k": 5},
        {"weight_dtype": "int3"},
        {"vocab": -1},
        {"expert_dtype": "int3"},
        {"router": Router("hash")},
        {"router": Router(groups=3)},
        {"router": Router(groups=2, top_groups=3)},
        {"dense_layers": 1},
        {"dense_layers": 3, "dense_width": 4},
        {"experts": 1, "top_k": 1, "shared": SharedExpert(4)},
    ],
)
def test_impossible_dimensions_are_refused(change):
    with pytest.raises(UnsupportedModelError):
        replace(TINY, **change)
