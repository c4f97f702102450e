"""Attention over the paged cache. Shapes: S sequences of L tokens, H query heads, KV heads of d."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from headrace.cli.kernelbench.case import Case, Run
from headrace.cli.kernelbench.roofs import cache_bytes
from headrace.kernels.kv import KvCache
from headrace.kernels.reference import Piece
from headrace.kernels.select import Kernels
from headrace.memory.arena import Arena
from headrace.memory.kvcache import kv_tensors, tensor
from headrace.memory.tiers import available_bytes
from headrace.specs.model import KV_FORMATS, ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import attention_tile, scratch_bytes

KV_DTYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "int8"}
FORMATS = tuple(KV_DTYPES)
"""K and V; int8 with a scale for each token and head."""

BLOCK = 16
MODEL = ModelSpec("mixtral", 1, 4096, 32, 8, 128, 14336, 32000, experts=8, top_k=2)
"""32 query and 8 KV heads of width 128."""

DECODES = ((16, 512), (16, 2048), (16, 8192), (64, 512), (64, 2048), (64, 8192))
QUICK_DECODES = ((16, 512),)
PREFILLS = ((1, 512, 512), (4, 128, 1024))
QUICK_PREFILLS = ((4, 64, 256),)
"""(sequences, new rows of each, tokens of each)."""

LATENT_HEADS, LATENT_COLUMNS, ROTATED = 16, 512, 64
"""DeepSeek-V2-Lite: query heads, columns of the latent vector, of the rotated key beside it."""
LATENTS = ((16, 512), (16, 2048), (16, 8192), (64, 2048))

APPENDED = 1 << 15
"""Tokens of the cache that rows are written to: more than a processor's caches hold."""


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


def latent(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """One new row of every sequence in MLA's latent form: one vector per token is the key and
    value of all heads. Bound by arithmetic: 30 FLOP for a byte in 16 bits."""
    for sequences, tokens in QUICK_DECODES if quick else LATENTS:
        yield _latent_case(kernels, form, sequences, tokens)


def append(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """K and V of new rows, rounded and written: of decodes, scattered over blocks that are not in
    the cache, and of a prompt, side by side."""
    yield _append_case(kernels, form, "64 decodes", torch.randperm(APPENDED).view(-1, 64))
    if not quick:
        yield _append_case(kernels, form, "512 of a prompt", torch.arange(APPENDED).view(-1, 512))


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
        kv_dtype=KV_DTYPES[form],
    )


def _pieces(sequences: int, rows: int, tokens: int) -> list[Piece]:
    """Blocks dealt out in turn, as sequences that grow together take them."""
    each = tokens // BLOCK
    return [
        Piece(s * rows, rows, tokens - rows, tuple(range(s, sequences * each, sequences)))
        for s in range(sequences)
    ]


def _cache(policy: Policy, size: int) -> KvCache:
    """A layer's cache in memory like the engine's."""
    return _filled(*kv_tensors(Arena("kv", size).take("kv", size), MODEL, policy))


def _filled(values: Tensor, scales: Tensor | None) -> KvCache:
    """One block of random values again and again: what is measured does not depend on them."""
    one = torch.randn(values.shape[0], 1, *values.shape[2:])
    values.copy_(one if scales is None else one * 32)
    if scales is not None:
        scales.fill_(0.02)
    return KvCache(values, scales)


def _latent_case(kernels: Kernels, form: str, sequences: int, tokens: int) -> Case:
    H, c, width = LATENT_HEADS, LATENT_COLUMNS, LATENT_COLUMNS + ROTATED
    stored = KV_FORMATS[KV_DTYPES[form]]
    size = sequences * tokens * (width * stored.item + stored.scale)
    blocks = sequences * tokens // BLOCK
    layers = [
        _latent_cache(blocks, width, form, size) for _ in range(1 + 4 * cache_bytes() // size)
    ]
    plan = kernels.plan_latent(_pieces(sequences, 1, tokens), BLOCK, None)
    q, out = torch.randn(sequences, H * width), torch.empty(sequences, H * c)
    memory = torch.empty(1 << 20)
    return Case(
        kernel="attention-latent",
        shape=f"{sequences}x1 L={tokens} {H}x({c}+{ROTATED})",
        format=form,
        run=lambda i: kernels.attend_latent(
            q, layers[i % len(layers)], plan, out, memory, width**-0.5
        ),
        bytes=size + 4.0 * (q.numel() + out.numel()),
        flops=2.0 * H * (width + c) * sequences * tokens,
        torch_ways=_torch_latent_ways(sequences, tokens),
    )


def _latent_cache(blocks: int, width: int, form: str, size: int) -> KvCache:
    """As ``_cache``, of one half and one head."""
    dtype, shape = KV_DTYPES[form], (1, blocks, 1, BLOCK, width)
    view = Arena("kv", size).take("kv", size)
    scales = tensor(view, "f32", shape[:4]) if KV_FORMATS[dtype].scale else None
    values = tensor(view, dtype, shape, offset=0 if scales is None else scales.nbytes)
    return _filled(values, scales)


def _torch_latent_ways(sequences: int, tokens: int) -> Callable[[], Mapping[str, Run]]:
    """SDPA with the query heads as rows of one head, over vectors that lie together."""
    H, c, width = LATENT_HEADS, LATENT_COLUMNS, LATENT_COLUMNS + ROTATED

    def way(dtype: torch.dtype) -> Run:
        keys = (
            torch.randn(1, 1, 1, width).to(dtype).expand(sequences, 1, tokens, width).contiguous()
        )
        q = torch.randn(sequences, 1, H, width).to(dtype)
        attend = functional.scaled_dot_product_attention
        return lambda i: attend(q, keys, keys[..., :c])

    return lambda: {"sdpa fp32": way(torch.float32), "sdpa bf16": way(torch.bfloat16)}


def _append_case(kernels: Kernels, form: str, name: str, turns: Tensor) -> Case:
    """Each call writes to the slots of the next row of ``turns``."""
    rows, KV, d = turns.shape[1], MODEL.kv_heads, MODEL.head_dim
    slots = list(turns)
    policy = _policy(rows, rows, APPENDED // BLOCK, form)
    token = MODEL.kv_layer_bytes(policy.kv_dtype)
    cache = _cache(policy, APPENDED * token)
    k, v = torch.randn(rows, KV * d), torch.randn(rows, KV * d)
    temp = torch.empty(k.numel())
    return Case(
        kernel="append",
        shape=f"{name} {KV}x{d}",
        format=form,
        run=lambda i: kernels.append(k, v, cache, slots[i % len(slots)], temp),
        bytes=float(rows * token),
        torch_ways=lambda: {
            f"index_put {n}": _torch_append(k, v, slots, torch.empty(2, APPENDED, KV * d, dtype=t))
            for n, t in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
    )


def _torch_append(k: Tensor, v: Tensor, slots: list[Tensor], cache: Tensor) -> Run:
    """Rows of K and V to a cache [2, tokens, KV d] of one row per token."""

    def run(i: int) -> None:
        for half, new in zip(cache, (k, v), strict=True):
            half[slots[i % len(slots)]] = new.to(cache.dtype)

    return run


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
