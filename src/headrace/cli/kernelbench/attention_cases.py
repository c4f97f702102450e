"""Attention over the paged cache. Shapes: S sequences of L tokens, H query heads, KV heads of d."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch.nn import functional

from headrace.cli.kernelbench.case import Case, Run
from headrace.cli.kernelbench.roofs import cache_bytes
from headrace.cli.kernelbench.weights import FLOATS
from headrace.kernels.kv import KvCache
from headrace.kernels.reference import Piece
from headrace.kernels.select import Kernels
from headrace.memory.arena import Arena
from headrace.memory.kvcache import kv_tensors
from headrace.memory.tiers import available_bytes
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import attention_tile, scratch_bytes

FORMATS = (*FLOATS, "int8")
"""K and V; int8 with a scale for each token and head."""

BLOCK = 16
MODEL = ModelSpec("mixtral", 1, 4096, 32, 8, 128, 14336, 32000, experts=8, top_k=2)
"""32 query and 8 KV heads of width 128."""

DECODES = ((16, 512), (16, 2048), (16, 8192), (64, 512), (64, 2048), (64, 8192))
QUICK_DECODES = ((16, 512),)
PREFILLS = ((1, 512, 512), (4, 128, 1024))
QUICK_PREFILLS = ((4, 64, 256),)
"""(sequences, new rows of each, tokens of each)."""


def decode(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """One new row of every sequence. A shape whose K and V, ours and torch's, would not fit the
    memory available is left out."""
    for sequences, tokens in QUICK_DECODES if quick else DECODES:
        if 3 * sequences * tokens * MODEL.kv_layer_bytes("f32") < available_bytes():
            yield _case(kernels, "attention-decode", form, sequences, 1, tokens)


def prefill(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """The last rows of every sequence, as a chunk of a prompt comes."""
    for sequences, rows, tokens in QUICK_PREFILLS if quick else PREFILLS:
        yield _case(kernels, "attention-prefill", form, sequences, rows, tokens)


def _case(kernels: Kernels, kernel: str, form: str, sequences: int, rows: int, tokens: int) -> Case:
    H, KV, d = MODEL.heads, MODEL.kv_heads, MODEL.head_dim
    blocks = sequences * tokens // BLOCK
    policy = _policy(sequences * rows, sequences, blocks, form)
    size = blocks * BLOCK * MODEL.kv_layer_bytes(policy.kv_dtype)
    layers = [_cache(policy, size) for _ in range(1 + 4 * cache_bytes() // size)]
    tile = attention_tile(MODEL, policy)
    pieces = _pieces(sequences, rows, tokens)
    plan = kernels.plan_attention(pieces, tile, BLOCK, None)
    q, out = torch.randn(sequences * rows, H * d), torch.empty(sequences * rows, H * d)
    memory = torch.empty(scratch_bytes(MODEL, policy), dtype=torch.uint8)
    pairs = sequences * sum(range(tokens - rows + 1, tokens + 1))  # query rows and keys they see
    return Case(
        kernel=kernel,
        shape=f"{sequences}x{rows} L={tokens} {H}/{KV}x{d}",
        format=form,
        run=lambda i: kernels.attend(q, layers[i % len(layers)], plan, out, memory, tile, None),
        bytes=size + 2.0 * 4 * q.numel(),
        flops=4.0 * H * d * pairs,
        torch_ways=_torch_ways(sequences, rows, tokens),
    )


def _policy(rows: int, sequences: int, blocks: int, form: str) -> Policy:
    return Policy(
        schedule="resident",
        max_rows=rows,
        max_seqs=sequences,
        resident=frozenset(),
        kv_blocks=blocks,
        kv_block=BLOCK,
        kv_dtype={"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "int8"}[form],
    )


def _pieces(sequences: int, rows: int, tokens: int) -> list[Piece]:
    """Blocks dealt out in turn, as sequences that grow together take them."""
    each = tokens // BLOCK
    return [
        Piece(s * rows, rows, tokens - rows, tuple(range(s, sequences * each, sequences)))
        for s in range(sequences)
    ]


def _cache(policy: Policy, size: int) -> KvCache:
    """A layer's cache in memory like the engine's. One block of random values again and again:
    what is measured does not depend on them."""
    values, scales = kv_tensors(Arena("kv", size).take("kv", size), MODEL, policy)
    one = torch.randn(2, 1, *values.shape[2:])
    values.copy_(one if scales is None else one * 32)
    if scales is not None:
        scales.fill_(0.02)
    return KvCache(values, scales)


def _torch_ways(sequences: int, rows: int, tokens: int) -> Callable[[], Mapping[str, Run]]:
    """SDPA over K and V that lie together, the queries of a KV head folded into one product
    (for decodes; the fastest call known), and with grouped heads as they are."""
    H, KV, d = MODEL.heads, MODEL.kv_heads, MODEL.head_dim

    def way(dtype: torch.dtype, folded: bool) -> Run:
        one = torch.randn(1, KV, 1, d).to(dtype)
        keys = one.expand(sequences, KV, tokens, d).contiguous()
        values = keys.clone()
        group = (KV, H // KV) if folded else (H, rows)
        q = torch.randn(sequences, group[0], group[1], d).to(dtype)
        mask = None
        if rows > 1:
            mask = torch.ones(rows, tokens, dtype=torch.bool).tril(tokens - rows)
        attend = functional.scaled_dot_product_attention
        return lambda i: attend(q, keys, values, attn_mask=mask, enable_gqa=not folded)

    def ways() -> Mapping[str, Run]:
        types = {"fp32": torch.float32, "bf16": torch.bfloat16}
        return {f"sdpa {name}": way(dtype, rows == 1) for name, dtype in types.items()}

    return ways
