"""Llama (Touvron et al. 2023, arXiv 2302.13971) and Mistral: one FFN that every row visits."""

from __future__ import annotations

from headrace.models.decoder import Config, dimensions, no_such, shared_name, sliding_window
from headrace.models.fields import Fields
from headrace.specs.model import ModelSpec

MODEL_TYPES = ("llama", "mistral")

_FFN = ("gate", "up", "down")


def spec_from_config(config: Config) -> ModelSpec:
    """The spec that config.json describes. Raises CheckpointError, UnsupportedModelError."""
    return _mistral(config) if config.get("model_type") == "mistral" else _llama(config)


def tensor_name(logical: str, layer: int | None, expert: int | None) -> str:
    """Name in the checkpoint; the FFN is expert 0 to us and nameless there."""
    shared = shared_name(logical, layer)
    if shared:
        return shared
    stem, bias, _ = logical.partition("_bias")
    if stem in _FFN:
        return f"model.layers.{layer}.mlp.{stem}_proj.{'bias' if bias else 'weight'}"
    raise no_such(logical)


def _llama(config: Config) -> ModelSpec:
    fields = Fields(config)
    sizes = dimensions(fields)
    bias = fields.boolean("attention_bias", False)
    return ModelSpec(
        architecture="llama",
        **sizes,
        rope=fields.rope(sizes["max_positions"]),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        weight_dtype=fields.dtype(),
    )


def _mistral(config: Config) -> ModelSpec:
    fields = Fields(config)
    sizes = dimensions(fields, kv_heads=8, positions=131072)
    return ModelSpec(
        architecture="mistral",
        **sizes,
        rope=fields.rope(sizes["max_positions"]),
        sliding_window=sliding_window(fields, sizes["max_positions"], 4096),
        weight_dtype=fields.dtype(),
    )
