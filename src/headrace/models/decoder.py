"""What all supported decoders have in common: sizes in config.json, names of shared tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import UnsupportedModelError
from headrace.models.compressed import check_config
from headrace.models.fields import Fields

_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_GLOBAL = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
}
_MOST = {"layers": 4096, "width": 1 << 20, "heads": 4096, "vocab": 1 << 24, "experts": 1 << 14}


def dimensions(
    fields: Fields, kv_heads: int | None = None, positions: int = 2048, eps: float = 1e-6
) -> dict[str, Any]:
    """Keyword arguments of ModelSpec that every decoder reads the same way.

    ``kv_heads``, ``positions`` and ``eps`` are the architecture's defaults for missing keys.
    Raises UnsupportedModelError for activations, quantisation and layer patterns we do not run.
    """
    fields.refuse_unless("hidden_act", "silu", "swish")
    check_config(fields.config)
    hidden = fields.integer("hidden_size", _MOST["width"])
    heads = fields.integer("num_attention_heads", _MOST["heads"])
    missing_kv = heads if "num_key_value_heads" in fields.config else kv_heads or heads
    head_dim = fields.integer("head_dim", 4096, max(1, hidden // heads))
    if head_dim % 2:
        raise UnsupportedModelError("head width", expected="an even number", got=head_dim)
    return {
        "layers": fields.integer("num_hidden_layers", _MOST["layers"]),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": fields.integer("num_key_value_heads", _MOST["heads"], missing_kv),
        "head_dim": head_dim,
        "ffn_width": fields.integer("intermediate_size", _MOST["width"]),
        "vocab": fields.integer("vocab_size", _MOST["vocab"]),
        "tied_embeddings": fields.boolean("tie_word_embeddings", False),
        "norm_eps": fields.number("rms_norm_eps", eps),
        "max_positions": fields.integer("max_position_embeddings", 1 << 27, positions),
    }


def routing(fields: Fields, experts_key: str, experts: int, top_k: int) -> tuple[int, int]:
    """Number of experts and how many a row visits. One expert is refused: that is dense."""
    count = fields.integer(experts_key, _MOST["experts"], experts)
    if count == 1:
        raise UnsupportedModelError("experts of the model", expected="at least 2", got=1)
    return count, fields.integer("num_experts_per_tok", count, top_k)


def sliding_window(fields: Fields, max_positions: int, default: int | None) -> int | None:
    """Window of keys that a query sees; None when no position can leave it."""
    kinds = fields.config.get("layer_types")
    if kinds is not None and kinds not in _uniform(kinds):
        raise UnsupportedModelError(
            "layer_types", expected="the same in every layer", got=str(kinds)[:80]
        )
    window = fields.optional_integer("sliding_window", 1 << 27, default)
    if window is None or window >= max_positions:
        return None
    return window


def _uniform(kinds: object) -> list[list[str]]:
    count = len(kinds) if isinstance(kinds, list) else 0
    return [[kind] * count for kind in ("full_attention", "sliding_attention")]


def shared_name(logical: str, layer: int | None) -> str | None:
    """Checkpoint name of a tensor outside the experts; None when it is not one of these."""
    if layer is None:
        return _GLOBAL.get(logical)
    name = _LAYER.get(logical)
    return None if name is None else f"model.layers.{layer}.{name}"


def no_such(logical: str) -> UnsupportedModelError:
    """Error for a logical name that the architecture lacks: Mapping errors stay ours."""
    return UnsupportedModelError("no such tensor in this architecture", got=logical)


Config = Mapping[str, Any]
"""config.json as parsed."""
