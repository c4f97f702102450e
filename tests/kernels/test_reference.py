"""Each op against its definition (transformers' own, where it has one), within 1e-5."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.llama import modeling_llama
from transformers.models.mixtral import modeling_mixtral
from transformers.models.olmoe import modeling_olmoe

from headrace.errors import ScheduleError, UnsupportedModelError
from headrace.kernels import reference
from headrace.kernels.kv import KvCache
from headrace.kernels.reference import Piece, Routing
from headrace.kernels.routed import RouterRule
from headrace.kernels.scratch import Scratch
from headrace.specs import scratch as sizes
from headrace.specs.model import Rope
from headrace.specs.scratch import AttentionTile, tile_elements, tile_rows


def close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def memory(nbytes=1 << 20):
    return torch.full((nbytes,), 0xFF, dtype=torch.uint8)  # NaN everywhere


def test_rms_norm_equals_transformers():
    x, weight = torch.randn(5, 33), torch.randn(33)
    norm = modeling_llama.LlamaRMSNorm(33, eps=1e-5)
    norm.weight.data.copy_(weight)
    close(reference.rms_norm(x, weight, 1e-5, torch.empty_like(x)), norm(x).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", [40, 1 << 20])
def test_linear_is_exact_for_any_tiling_format_and_bias(dtype, tile, monkeypatch):
    monkeypatch.setattr(sizes, "TILE_ELEMENTS", tile)
    x, weight, bias = torch.randn(3, 17), torch.randn(29, 17).to(dtype), torch.randn(29).to(dtype)
    piece = torch.empty(tile_elements(29, 17))
    wide = torch.full((3, 50), 7.0)
    reference.linear(x, weight, wide[:, 10:39], piece, bias)
    wanted = functional.linear(x, weight.float(), bias.float())
    close(wide[:, 10:39], wanted)
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 39:] == 7).all()
    reference.linear(x, weight, wide[:, 10:39], piece, bias, accumulate=True)
    close(wide[:, 10:39], 2 * wanted)


def test_a_row_wider_than_the_tile_is_upcast_whole():
    assert tile_rows(1 << 22) == 1
    assert tile_elements(10, 1 << 22) >= 1 << 22


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "original_max_position_embeddings": 1024,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "attention_factor": 0.8,
        "original_max_position_embeddings": 512,
    },
}


@pytest.mark.parametrize("parameters", ROPES.values(), ids=ROPES)
def test_rope_equals_transformers(parameters):
    config = transformers.LlamaConfig(
        hidden_size=96, num_attention_heads=4, rope_parameters=dict(parameters)
    )
    positions = torch.tensor([0, 1, 5, 900, 4000])
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    q = torch.randn(1, 4, 5, 24)
    wanted, _ = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    rope = Rope(parameters["rope_theta"], tuple(parameters.items()))
    tables = reference.rope_tables(positions, *reference.inverse_frequencies(rope, 24))
    mine = q[0].transpose(0, 1).contiguous()
    reference.apply_rope(mine, *tables, torch.empty(mine.numel()))
    close(mine, wanted[0].transpose(0, 1))


def test_unknown_rope_scaling_is_refused():
    with pytest.raises(UnsupportedModelError, match="longrope"):
        reference.inverse_frequencies(Rope(1e4, (("rope_type", "longrope"),)), 8)


def new_routing(rows, k, experts):
    return Routing(
        torch.empty(rows, k, dtype=torch.int32),
        torch.empty(rows, k),
        torch.empty(rows * k, dtype=torch.int32),
        torch.empty(rows * k),
        torch.empty(experts + 1, dtype=torch.int64),
    )


@pytest.mark.parametrize(("experts", "k", "renormalise"), [(4, 2, True), (64, 8, False)])
def test_route_equals_transformers(experts, k, renormalise):
    if renormalise:
        config = transformers.MixtralConfig(
            hidden_size=20, num_local_experts=experts, num_experts_per_tok=k
        )
        router = modeling_mixtral.MixtralTopKRouter(config)
    else:
        config = transformers.OlmoeConfig(
            hidden_size=20, num_experts=experts, num_experts_per_tok=k
        )
        router = modeling_olmoe.OlmoeTopKRouter(config)
    weight = router.weight.data.normal_()
    x = torch.randn(11, 20)
    routing = new_routing(13, k, experts)
    rule = RouterRule(renormalise=renormalise)
    reference.route(x, weight, rule, routing, Scratch(memory()))
    _, gates, ids = router(x)
    assert torch.equal(routing.ids[:11].long(), ids)
    close(routing.gates[:11], gates.detach())
    for expert in range(experts):
        rows, weights = routing.of(expert)
        place, choice = (ids == expert).nonzero().unbind(1)
        assert rows.tolist() == place.tolist()
        close(weights, gates.detach()[place, choice])
        assert routing.visits(expert) == bool(len(rows))
    assert sum(routing.counts()) == 11 * k


@pytest.mark.parametrize("bias", [False, True])
def test_expert_is_down_of_silu_gate_times_up(bias):
    shapes = {"gate": (30, 12), "up": (30, 12), "down": (12, 30)}
    # of the size that weights have: outputs near 1, so that 1e-5 means what it says
    weights = {n: (torch.randn(s) * s[1] ** -0.5).bfloat16() for n, s in shapes.items()}
    if bias:
        weights |= {f"{n}_bias": torch.randn(s[0]).bfloat16() for n, s in shapes.items()}
    w = {n: t.float() for n, t in weights.items()}
    x, inter, up, tile = torch.randn(5, 12), *(torch.empty(5, 30) for _ in "ab"), torch.empty(360)
    got = reference.expert(x, weights, torch.empty(5, 12), inter, up, tile)
    gate = functional.linear(x, w["gate"], w.get("gate_bias"))
    wanted = functional.silu(gate) * functional.linear(x, w["up"], w.get("up_bias"))
    close(got, functional.linear(wanted, w["down"], w.get("down_bias")))


@st.composite
def attention_cases(draw):
    block = draw(st.sampled_from([1, 4, 16]))
    pieces = draw(
        st.lists(st.tuples(st.integers(1, 40), st.integers(0, 70)), min_size=1, max_size=9)
    )
    return {
        "block": block,
        "pieces": pieces,
        "heads": draw(st.sampled_from([(1, 1), (2, 3), (3, 1)])),
        "window": draw(st.none() | st.integers(1, 60)),
        "tile": AttentionTile(
            kv_tokens=block * draw(st.sampled_from([1, 3, 50])),
            rows=draw(st.sampled_from([16, 64])),
            pairs=16 * block * draw(st.sampled_from([1, 4, 100])),
            query_rows=draw(st.sampled_from([1, 7, 16])),
        ),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    }


@settings(max_examples=60, deadline=None)
@given(attention_cases())
def test_attention_over_pages_equals_softmax_over_all_keys(case):
    """Decodes and chunks, any grouping, tiling, window and format; unwritten memory is NaN."""
    generator = torch.Generator().manual_seed(len(case["pieces"]))
    (kv_heads, share), block, d = case["heads"], case["block"], 6
    needed = [-(-(rows + start) // block) for rows, start in case["pieces"]]
    free = torch.randperm(sum(needed) + 2, generator=generator).tolist()
    shape = (2, len(free), kv_heads, block, d)
    cache = KvCache(torch.full(shape, torch.nan, dtype=case["dtype"]))
    total = sum(rows for rows, _ in case["pieces"])
    q = torch.randn(total, kv_heads * share * d, generator=generator)
    wanted, pieces, row = torch.empty_like(q), [], 0
    for (rows, start), count in zip(case["pieces"], needed, strict=True):
        blocks = [free.pop() for _ in range(count)]
        kv = torch.randn(2, rows + start, kv_heads, d, generator=generator).to(case["dtype"])
        for position in range(rows + start):
            for half in (0, 1):
                place = cache.half(half)[blocks[position // block], :, position % block]
                place.copy_(kv[half, position])
        pieces.append(Piece(row, rows, start, blocks))
        wanted[row : row + rows] = naive(q[row : row + rows], kv.float(), start, case["window"])
        row += rows
    out = torch.full_like(q, torch.nan)
    groups = reference.plan_attention(pieces, case["tile"], block, case["window"])
    reference.attend(q, cache, groups, out, memory(), case["tile"], case["window"])
    close(out, wanted)


def test_keys_lie_turned_and_read_as_if_they_did_not():
    cache = KvCache(torch.zeros(2, 3, 2, 4, 5))
    cache.half(0)[1, 1, 2] = torch.arange(5.0)
    cache.half(1)[1, 1, 2] = torch.arange(5.0)
    assert torch.equal(cache.values[0, 1, 1].flatten()[2::4], torch.arange(5.0))  # [d, block]
    assert torch.equal(cache.values[1, 1, 1, 2], torch.arange(5.0))
    latent = KvCache(cache.values[1:])
    assert latent.half(0).shape == cache.half(0).shape == (3, 2, 4, 5)
    assert torch.equal(latent.half(0), cache.half(1))


def naive(q, kv, start, window):
    """One sequence: q [r, KV G d], kv [2, L, KV, d]."""
    rows, (tokens, heads, d) = len(q), kv.shape[1:]
    scores = torch.einsum("rhgd,lhd->hgrl", q.view(rows, heads, -1, d), kv[0]) * d**-0.5
    last = start + torch.arange(rows)[:, None]
    keys = torch.arange(tokens)
    hidden = keys > last
    if window is not None:
        hidden |= keys <= last - window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hgrl,lhd->rhgd", weights, kv[1]).reshape(rows, -1)


def test_decodes_of_near_length_share_a_group():
    tile = AttentionTile(1 << 16, 256, 1 << 20, 128)
    blocks = list(range(20))
    pieces = [Piece(i, 1, 200 + i, blocks) for i in range(60)]
    assert len(reference.plan_attention(pieces, tile, 16, None)) == 1
    mixed = [*pieces, Piece(60, 1, 3, blocks)]
    assert len(reference.plan_attention(mixed, tile, 16, None)) == 2
    assert reference.plan_attention([], tile, 16, None) == ()


def test_scratch_refuses_to_hand_out_more_than_it_has():
    scratch = Scratch(memory(256))
    scratch.take(16)
    with pytest.raises(ScheduleError, match=r"specs/scratch\.py"):
        scratch.take(64)
