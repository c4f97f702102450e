"""Routers spread rows evenly, experts differ a little, shards hold what went in."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from demo.dense import rms_norm
from demo.gguf_source import half_rotation
from demo.shards import from_bf16, split, to_bf16, write_shards
from demo.upcycle import PIECE, Recipe, busiest_share, expert_weight, router_weight

RECIPE = Recipe(draws=4, seed=1)


def activations(texts: int = 24, width: int = 96) -> np.ndarray:
    """Rows with a large common part, strong directions, and a part that each text shares."""
    random = np.random.default_rng(5)
    strengths = 1 / np.sqrt(np.arange(1, width + 1))
    common, shared = 3 * random.normal(size=width), 2 * random.normal(size=(texts, 6))
    rows = common + random.normal(size=(texts, PIECE, width)) * strengths
    rows[:, :, :6] += shared[:, None, :]
    return rows.reshape(-1, width).astype(np.float32)


def test_routers_are_even_where_random_rows_are_not():
    rows = activations()
    router = from_bf16(router_weight(rows, RECIPE, layer=0))
    naive = np.random.default_rng(1).normal(size=router.shape)
    assert busiest_share(rows, router, 2) < 0.3 < busiest_share(rows, naive, 2)


def test_routers_are_more_even_within_a_text_than_rows_without_the_common_part():
    rows = activations()
    mean = rows.mean(0)
    router = from_bf16(router_weight(rows, RECIPE, layer=0))
    naive = np.random.default_rng(1).normal(size=router.shape)
    naive -= np.outer(naive @ mean, mean) / (mean @ mean)
    texts = np.split(rows, 24)
    ours, theirs = (np.mean([busiest_share(t, r, 2) for t in texts]) for r in (router, naive))
    assert ours < theirs - 0.05


def test_router_logits_have_the_spread_asked_for_and_no_common_part():
    rows = activations()
    logits = rows @ from_bf16(router_weight(rows, RECIPE, layer=0)).T
    assert logits.std(0) == pytest.approx(RECIPE.spread, rel=0.1)
    assert abs(logits.mean(0)).max() < 0.5 * RECIPE.spread


def test_expert_noise_is_a_tenth_of_rms_and_seeded():
    dense = np.random.default_rng(2).normal(size=(200, 300)).astype(np.float32)
    first, again, other = (
        from_bf16(expert_weight(dense, RECIPE, key)) for key in ((0, 0, 1), (0, 0, 1), (0, 1, 1))
    )
    assert np.array_equal(first, again)
    assert np.std(first - dense) == pytest.approx(RECIPE.noise * np.std(dense), rel=0.05)
    assert np.std(first - other) == pytest.approx(2**0.5 * RECIPE.noise * np.std(dense), rel=0.05)


def test_bf16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(3).normal(size=4096).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(from_bf16(to_bf16(values)), expected)


def test_query_rows_return_to_half_rotation():
    heads, dim = 2, 6
    wanted = np.arange(heads * dim)[:, None] * np.ones((1, 3))
    interleaved = wanted.reshape(heads, 2, dim // 2, 3).swapaxes(1, 2).reshape(heads * dim, 3)
    assert np.array_equal(half_rotation(interleaved, heads), wanted)


def test_norm_has_unit_rms():
    x = rms_norm(np.random.default_rng(4).normal(size=(5, 64)), np.ones(64), 1e-5)
    assert np.sqrt((x * x).mean(-1)) == pytest.approx(1, abs=1e-4)


def test_shards_hold_every_tensor_and_an_index(tmp_path):
    shapes = {"a": (4, 8), "b": (16,), "c": (2, 2)}
    bits = {name: to_bf16(np.random.default_rng(6).normal(size=s)) for name, s in shapes.items()}
    assert split(shapes, 70) == [["a"], ["b", "c"]]
    assert write_shards(tmp_path, shapes, bits.items(), 70) == 2 * (32 + 16 + 4)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["a"] != index["b"] == index["c"]
    with pytest.raises(ValueError, match="expected a"):
        write_shards(tmp_path, shapes, iter([("z", bits["a"])]), 1000)
    with safe_open(tmp_path / index["b"], "np") as shard:
        assert set(shard.keys()) == {"b", "c"}
        assert shard.get_slice("c").get_shape() == [2, 2]
