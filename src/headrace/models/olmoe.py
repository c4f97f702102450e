"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): norm over all of q and of k, many small
experts, gates not renormalised unless the config says so."""

from __future__ import annotations

from headrace.errors import UnsupportedModelError
from headrace.models.decoder import Config, dimensions, no_such, routing, shared_name
from headrace.models.fields import Fields
from headrace.specs.model import ModelSpec

MODEL_TYPES = ("olmoe",)

_EXPERT = ("gate", "up", "down")


def spec_from_config(config: Config) -> ModelSpec:
    """The spec that config.json describes. Raises CheckpointError, UnsupportedModelError."""
    fields = Fields(config)
    sizes = dimensions(fields, positions=4096, eps=1e-5)
    if sizes["heads"] * sizes["head_dim"] != sizes["hidden"]:
        raise UnsupportedModelError(
            "OLMoE heads", expected=f"{sizes['hidden']} wide in all (the hidden size)"
        )
    bias = fields.boolean("attention_bias", False)
    return ModelSpec(
        architecture="olmoe",
        **sizes,
        **routing(fields, "num_experts", experts=64, top_k=8),
        renormalise=fields.boolean("norm_topk_prob", False),
        rope=fields.rope(sizes["max_positions"]),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        clip_qkv=fields.optional_number("clip_qkv"),
        weight_dtype=fields.dtype(),
    )


def tensor_name(logical: str, layer: int | None, expert: int | None) -> str:
    """Name in the checkpoint, experts one by one."""
    shared = shared_name(logical, layer)
    if shared:
        return shared
    if logical == "router":
        return f"model.layers.{layer}.mlp.gate.weight"
    if logical in _EXPERT:
        return f"model.layers.{layer}.mlp.experts.{expert}.{logical}_proj.weight"
    raise no_such(logical)
