"""Storage of the paged KV cache: its shape, its bytes, and tensors over arena memory.

One tensor per layer, ``[2, blocks, KV, block, d]``: keys then values, in blocks of ``block``
tokens that the batcher hands out. In int8, fp32 scales ``[2, blocks, KV, block]`` lie before it.
Writing and gathering live in kernels. The only module of ``memory`` that imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from headrace.specs.model import KV_FORMATS, ModelSpec
from headrace.specs.policy import Policy

DTYPES: Mapping[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i8": torch.int8,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "int8": torch.int8,
}
"""Our format names in torch's words."""


def kv_shape(model: ModelSpec, policy: Policy) -> tuple[int, int, int, int, int]:
    """``[2, blocks, KV, block, d]`` of one layer."""
    return (2, policy.kv_blocks, model.kv_heads, policy.kv_block, model.head_dim)


def kv_tensors(
    view: memoryview, model: ModelSpec, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One layer's KV over arena memory, and its scales where the format has them."""
    shape = kv_shape(model, policy)
    if not KV_FORMATS[policy.kv_dtype].scale:
        return tensor(view, policy.kv_dtype, shape), None
    scales = tensor(view, "f32", shape[:4])
    return tensor(view, policy.kv_dtype, shape, offset=scales.nbytes), scales


def tensor(view: memoryview, dtype: str, shape: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    """A tensor over ``view`` from byte ``offset``, without a copy; it keeps the memory alive.

    ``view`` must be writable and long enough.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(view, dtype=DTYPES[dtype], count=count, offset=offset).view(shape)
