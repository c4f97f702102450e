"""The arithmetic, in plain torch: the definition that faster kernels are tested against.

Activations and accumulators are fp32; weights keep their stored type and are upcast tile by
tile into scratch; K and V are rounded to the cache's type before any use. Results go to
``out``; temporaries come from ``Scratch``.
"""

from headrace.kernels.reference.attention import AttentionGroup, Piece, attend, plan_attention
from headrace.kernels.reference.cache import append
from headrace.kernels.reference.draws import best_tokens, draw_tokens, rank_tokens
from headrace.kernels.reference.experts import expert_down, expert_up, experts
from headrace.kernels.reference.latent import attend_latent, plan_latent
from headrace.kernels.reference.layer import (
    AttentionRule,
    attention_inputs,
    attention_output,
    embed,
    gather_norm,
    widen_rows,
)
from headrace.kernels.reference.linear import fetch, linear, turn, upcast
from headrace.kernels.reference.moe import expert, gated, route
from headrace.kernels.reference.norm import rms_norm
from headrace.kernels.reference.rope import apply_rope, inverse_frequencies, rope_tables
from headrace.kernels.routed import RouterRule, Routing, Scoring

__all__ = [
    "AttentionGroup",
    "AttentionRule",
    "Piece",
    "RouterRule",
    "Routing",
    "Scoring",
    "append",
    "apply_rope",
    "attend",
    "attend_latent",
    "attention_inputs",
    "attention_output",
    "best_tokens",
    "draw_tokens",
    "embed",
    "expert",
    "expert_down",
    "expert_up",
    "experts",
    "fetch",
    "gated",
    "gather_norm",
    "inverse_frequencies",
    "linear",
    "plan_attention",
    "plan_latent",
    "rank_tokens",
    "rms_norm",
    "rope_tables",
    "route",
    "turn",
    "upcast",
    "widen_rows",
]
