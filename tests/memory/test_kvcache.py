from __future__ import annotations

import pytest

from headrace.memory.arena import Arena
from headrace.specs.policy import Policy

from .folders import small_model

torch = pytest.importorskip("torch")

from headrace.memory.kvcache import kv_shape, kv_tensor, tensor  # noqa: E402


@pytest.mark.parametrize(("dtype", "item"), [("f16", 2), ("bf16", 2), ("f32", 4)])
def test_a_layer_of_kv_fills_its_bytes(dtype: str, item: int) -> None:
    policy = Policy("resident", 4, 4, kv_blocks=5, kv_block=8, kv_dtype=dtype)
    model = small_model()
    assert kv_shape(model, policy) == (2, 5, 8, 1, 12)
    with Arena("host", 1 << 16) as arena:
        kv = kv_tensor(arena.take("kv", 2 * 5 * 8 * 12 * item), model, policy)
        assert kv.shape == kv_shape(model, policy)
        kv.fill_(1)
        assert kv.sum() == kv.numel()


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
