"""What op bodies need beside their declared operands: the size of the ``scratch`` buffer, of the
``routing`` buffer, and of what torch allocates beyond both.

The tile sizes below are chosen so that upcast weights and gathered K and V stay in a CPU's
cache; they bound scratch for any model. Tests compare each formula with what the bodies take.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.specs.model import KV_FORMATS, ModelSpec
from headrace.specs.policy import Policy

ALIGN = 64
READ_SLACK = 8192  # what an aligned direct read may bring along: a block in front, one behind
TILE_ELEMENTS = 1 << 20  # fp32 weights upcast at a time: 4 MB
ROW_BLOCK = 512  # rows of one expert multiplied at a time
PANEL_ROWS = 16  # rows that native kernels pack together, at least
PANEL_COLUMNS = 64  # columns are padded to a multiple of these
KV_TILE_BYTES = 4 << 20  # fp32 K (then V) of one attention group
SCORE_ELEMENTS = 1 << 20  # fp32 scores of one attention group
GROUP_ROWS = 256  # query rows of one attention group
QUERY_ROWS = 128  # query rows of one member
INTEGER_ELEMENTS = 1 << 16  # integer weights widened at a time by the reference
INTEGER_BYTES = 48  # for each of them: words and integers in 64 bits, copies in fp32
ROUNDED_BYTES = 6  # for each element of rows that it rounds to bf16 at a time: bf16, fp32
SAMPLE_BLOCK_BYTES = 32 << 20  # what one block of random or adjusted rows may allocate
SAMPLE_ROW_BYTES = 24  # per vocabulary entry: fp32 copy, fp64 cumulative sum, masks, sort


class AttentionTile(NamedTuple):
    """Bounds of one attention group: tokens of KV, query rows, pairs of both, rows a member."""

    kv_tokens: int
    rows: int
    pairs: int
    query_rows: int


def attention_tile(model: ModelSpec, policy: Policy) -> AttentionTile:
    """Bounds for this model's heads and this policy's blocks and rows. At least one block."""
    block = policy.kv_block
    blocks = min(policy.kv_blocks, KV_TILE_BYTES // (2 * model.kv_elements * block))
    kv_tokens = max(1, blocks) * block
    rows = min(policy.mu, GROUP_ROWS)
    query_rows = min(rows, QUERY_ROWS)
    pairs = min(SCORE_ELEMENTS // model.heads, rows * kv_tokens)
    return AttentionTile(kv_tokens, rows, max(pairs, query_rows * block), query_rows)


def tile_rows(columns: int) -> int:
    """Weight rows of ``columns`` that are upcast at a time."""
    return max(1, TILE_ELEMENTS // columns)


def tile_elements(rows: int, columns: int) -> int:
    """fp32 elements of scratch for a product with a [rows, columns] weight: a tile of it, upcast,
    or four times the rows of x that native kernels pack at least."""
    panel = 4 * PANEL_ROWS * -(-columns // PANEL_COLUMNS) * PANEL_COLUMNS
    return max(min(rows, tile_rows(columns)) * columns, panel)


def scratch_bytes(model: ModelSpec, policy: Policy) -> int:
    """Bytes of the ``scratch`` buffer: the hungriest op at the policy's maxima."""
    ops = (_embed, _pre_attention, _attention, _post_attention, _router, _ffn, _head)
    return max(op(model, policy) for op in ops)


def routing_bytes(model: ModelSpec, policy: Policy) -> int:
    """Bytes of one ``routing`` buffer: ids, gates, rows and weights [mu k], starts [E + 1];
    k and E count the shared expert."""
    entries = policy.mu * visits(model)
    return 4 * aligned(4 * entries) + aligned(8 * (model.experts_in(model.layers - 1) + 1))


def visits(model: ModelSpec) -> int:
    """Experts that a row visits at most in a layer."""
    return model.visits_in(model.layers - 1)


def torch_bytes(model: ModelSpec, policy: Policy) -> int:
    """Most bytes that torch allocates beyond arenas while one sweep runs.

    Index tensors of the sweep's batch (positions, KV slots, block tables, cos and sin) plus
    the temporaries of one op: small ones, those of widening integers, or those of sampling.
    Blocks of one sequence are counted once per query block.
    """
    small = _temporary_bytes(model, policy) + integer_bytes(model, policy)
    return _index_bytes(model, policy) + max(small, sampling_bytes(model, policy))


def integer_elements(columns: int) -> int:
    """Elements of integer weights, and of rows that are rounded, that torch works on at a time."""
    return max(INTEGER_ELEMENTS, 8 * columns)


def integer_bytes(model: ModelSpec, policy: Policy) -> int:
    """Most bytes that the reference allocates for integer weights, or for activations rounded to
    bf16; native kernels need none."""
    rounds = policy.activations == "bf16"
    if policy.kernels == "native" or (model.integers is None and not rounds):
        return 0
    each = ROUNDED_BYTES if model.integers is None else INTEGER_BYTES
    return each * integer_elements(max(model.hidden, model.q_size, model.ffn_width))


def sampling_bytes(model: ModelSpec, policy: Policy) -> int:
    """Most bytes that drawing tokens allocates: blocks of rows of the vocabulary."""
    row = SAMPLE_ROW_BYTES * model.vocab
    return max(row, min(SAMPLE_BLOCK_BYTES, row * policy.max_seqs))


def aligned(size: int) -> int:
    """``size`` rounded up to the alignment of buffers and scratch pieces."""
    return -(-size // ALIGN) * ALIGN


def _index_bytes(model: ModelSpec, policy: Policy) -> int:
    rows, tile = policy.max_rows, attention_tile(model, policy)
    per_row = 8 * 8 + 4 * model.head_dim  # tokens, positions, slots, rows, limits; cos, sin
    tables = policy.kv_blocks + rows // tile.query_rows * (policy.kv_blocks // 2)
    return rows * per_row + 2 * 8 * (tables + rows * policy.kv_block)


def _temporary_bytes(model: ModelSpec, policy: Policy) -> int:
    mu, tile = policy.mu, attention_tile(model, policy)
    vectors = 4 * (4 * mu + 2 * max(model.hidden, model.q_size, model.widest))
    merge = 4 * tile.rows * model.heads + 4 * tile.rows + 16 * tile.kv_tokens
    routing = mu * visits(model) * (4 + 4 + 8) + 16 * (model.experts + 1)
    written = mu * (model.kv_size + 24 * model.kv_heads) if policy.kv_dtype == "int8" else 0
    return 4096 + vectors + max(merge, written) + routing + 8 * policy.max_rows


def _embed(model: ModelSpec, policy: Policy) -> int:
    return _pieces(policy.mu * model.hidden)


def _pre_attention(model: ModelSpec, policy: Policy) -> int:
    width = max(model.kv_size, model.kv_elements // 2)
    mu, kv = policy.mu, policy.mu * width
    tile = max(tile_elements(n, model.hidden) for n in (model.q_size, width))
    temp = max(mu * model.q_size, kv)
    return _pieces(mu * model.hidden, kv, kv, tile, temp) + _pieces(kv)


def _attention(model: ModelSpec, policy: Policy) -> int:
    tile = attention_tile(model, policy)
    queries, heads = tile.rows * model.q_size, tile.rows * model.heads
    partial = (heads, heads, queries)
    keys = tile.kv_tokens * max(model.kv_size, model.kv_elements // 2)
    form = KV_FORMATS[policy.kv_dtype]
    stored = aligned(keys * form.item) + aligned(tile.kv_tokens * model.kv_heads * form.scale)
    masks = 2 * aligned(tile.pairs)
    floats = _pieces(queries, queries, *partial, *partial, keys, tile.pairs * model.heads)
    return floats + stored + masks


def _post_attention(model: ModelSpec, policy: Policy) -> int:
    return _pieces(tile_elements(model.hidden, model.attended_size))


def _router(model: ModelSpec, policy: Policy) -> int:
    entries = 2 * policy.mu * visits(model)  # int64
    scores = policy.mu * model.experts
    tile = max(model.experts * model.hidden, tile_elements(model.experts, model.hidden))
    return _pieces(scores, tile, entries, entries, entries)


def _ffn(model: ModelSpec, policy: Policy) -> int:
    rows = max(PANEL_ROWS, min(ROW_BLOCK, policy.max_rows))
    wide, narrow = rows * model.widest, rows * model.hidden
    up = tile_elements(model.widest, model.hidden)
    down = tile_elements(model.hidden, model.widest)
    return _pieces(narrow, narrow, wide, wide, max(up, down))


def _head(model: ModelSpec, policy: Policy) -> int:
    rows = policy.max_seqs * model.hidden
    return _pieces(max(rows, tile_elements(model.vocab, model.hidden)))


def _pieces(*elements: int) -> int:
    """Bytes of fp32 pieces, each aligned."""
    return sum(aligned(4 * count) for count in elements)
