"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): softmax router, top-k gates renormalised."""

from __future__ import annotations

from headrace.models.decoder import (
    Config,
    dimensions,
    no_such,
    routing,
    shared_name,
    sliding_window,
)
from headrace.models.fields import Fields
from headrace.specs.model import ModelSpec

MODEL_TYPES = ("mixtral",)

_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


def spec_from_config(config: Config) -> ModelSpec:
    """The spec that config.json describes. Raises CheckpointError, UnsupportedModelError."""
    fields = Fields(config)
    sizes = dimensions(fields, kv_heads=8, positions=131072, eps=1e-5)
    return ModelSpec(
        architecture="mixtral",
        **sizes,
        **routing(fields, "num_local_experts", experts=8, top_k=2),
        renormalise=True,
        rope=fields.rope(sizes["max_positions"], default_theta=1e6),
        sliding_window=sliding_window(fields, sizes["max_positions"], None),
        weight_dtype=fields.dtype(),
    )


def tensor_name(logical: str, layer: int | None, expert: int | None) -> str:
    """Name in the checkpoint, experts one by one."""
    shared = shared_name(logical, layer)
    if shared:
        return shared
    if logical == "router":
        return f"model.layers.{layer}.block_sparse_moe.gate.weight"
    if logical in _EXPERT:
        return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{_EXPERT[logical]}.weight"
    raise no_such(logical)
