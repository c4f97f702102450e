from __future__ import annotations

import pytest

from headrace.memory.arena import Arena
from headrace.specs.policy import Policy

from .folders import small_model

torch = pytest.importorskip("torch")

from headrace.memory.kvcache import kv_shape, kv_tensors, tensor  # noqa: E402


@pytest.mark.parametrize(("dtype", "item"), [("f16", 2), ("bf16", 2), ("f32", 4)])
def test_a_layer_of_kv_fills_its_bytes(dtype: str, item: int) -> None:
    policy = Policy("resident", 4, 4, kv_blocks=5, kv_block=8, kv_dtype=dtype)
    model = small_model()
    assert kv_shape(model, policy) == (2, 5, 1, 8, 12)
    with Arena("host", 1 << 16) as arena:
        kv, scales = kv_tensors(arena.take("kv", 2 * 5 * 8 * 12 * item), model, policy)
        assert scales is None
        assert kv.shape == kv_shape(model, policy)
        kv.fill_(1)
        assert kv.sum() == kv.numel()


def test_integers_and_their_scales_fill_the_bytes_of_a_layer() -> None:
    policy, model = (
        Policy("resident", 4, 4, kv_blocks=5, kv_block=3, kv_dtype="int8"),
        small_model(),
    )
    count = 15 * model.kv_layer_bytes("int8")
    assert count == 2 * 15 * (12 + 4)
    memory = memoryview(bytearray(count))
    values, scales = kv_tensors(memory, model, policy)
    assert scales is not None
    assert (values.shape, scales.shape) == (kv_shape(model, policy), (2, 5, 1, 3))
    values.fill_(1)
    assert (scales == 0).all()
    assert values.nbytes + scales.nbytes == count == sum(b == 1 for b in memory) + scales.nbytes


def test_tensors_share_the_memory_they_are_laid_over() -> None:
    memory = memoryview(bytearray(32))
    view = tensor(memory, "f32", (2, 3), offset=8)
    view[1, 2] = 1.0
    assert bytes(memory[28:32]) == b"\x00\x00\x80\x3f"
    assert tensor(memory, "u8", (32,))[31] == 0x3F


def test_an_empty_tensor_needs_no_memory() -> None:
    assert tensor(memoryview(bytearray()), "i32", (0, 4)).shape == (0, 4)


def test_tensors_keep_a_closed_arena_alive() -> None:
    arena = Arena("host", 4096)
    values = tensor(arena.take("x", 16), "f32", (4,))
    arena.close()
    del arena
    values.copy_(torch.arange(4.0))
    assert values.tolist() == [0, 1, 2, 3]
