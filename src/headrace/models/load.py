"""From config.json to the architecture that runs it and the spec that describes it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from headrace.errors import CheckpointError, UnsupportedModelError
from headrace.memory.checkpoint import Checkpoint
from headrace.models import llama, mixtral, olmoe
from headrace.models.compressed import quantization_of, stored_forms
from headrace.specs.forms import MATRICES, Form
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import Page, page_layout


class Architecture(Protocol):
    """What a module of this package offers."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:  # noqa: N802 (a module's constant)
        """Values of ``model_type`` that it reads."""
        ...

    def spec_from_config(self, config: Mapping[str, Any]) -> ModelSpec:
        """The spec that config.json describes."""
        ...

    def tensor_name(self, logical: str, layer: int | None, expert: int | None) -> str:
        """Name of a tensor in the checkpoint."""
        ...


ARCHITECTURES: tuple[Architecture, ...] = (llama, mixtral, olmoe)
"""All that run."""

_MOST_IN_A_WORD = 8  # integers of 4 bits


def checkpoint_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of an opened checkpoint, no larger than what its files hold.

    Page layouts grow with the spec: a config.json that announces a million experts must not
    take memory for them. Raises CheckpointError and UnsupportedModelError.
    """
    tensors = checkpoint.tensors
    spec = model_spec(checkpoint.config, {name: entry.dtype for name, entry in tensors.items()})
    packed = _MOST_IN_A_WORD if quantization_of(checkpoint.config) else 1
    stored = sum(
        math.prod(entry.shape) * (packed if entry.dtype == "i32" else 1)
        for entry in tensors.values()
    )
    needed_tensors = spec.layers * spec.experts * len(spec.expert_tensors())
    if spec.parameters() > stored or needed_tensors > len(tensors):
        raise CheckpointError(
            "config.json describes more weights than the files hold",
            expected=f"{spec.parameters()} weights",
            got=f"{stored} in {len(tensors)} tensors",
            hint="does config.json belong to these weights?",
        )
    return replace(spec, integers=_integers(checkpoint, spec))


def checkpoint_pages(
    checkpoint: Checkpoint, model: ModelSpec, cut_bytes: int | None = None
) -> tuple[Page, ...]:
    """The pages of an opened checkpoint, each tensor in the form in which it is stored."""
    name_of = architecture(checkpoint.config).tensor_name
    return page_layout(model, cut_bytes, stored_forms(checkpoint, name_of, model))


def model_spec(config: Mapping[str, Any], dtypes: Mapping[str, str] | None = None) -> ModelSpec:
    """The spec of a checkpoint.

    ``dtypes`` (tensor name -> stored format) corrects the format that the config announces: the
    embedding table's own counts, since its rows are read by size. Raises CheckpointError for
    values out of range, UnsupportedModelError for what we do not run.
    """
    architecture_ = architecture(config)
    spec = architecture_.spec_from_config(config)
    stored = (dtypes or {}).get(architecture_.tensor_name("embed", None, None))
    if stored is None or stored == spec.weight_dtype:
        return spec
    if stored not in ITEM_BYTES:
        raise UnsupportedModelError(
            "weight format", expected=", ".join(ITEM_BYTES), got=str(stored)[:80]
        )
    return replace(spec, weight_dtype=stored)


def _integers(checkpoint: Checkpoint, model: ModelSpec) -> Form | None:
    """The form of the first matrix that is stored as integers, experts first."""
    if quantization_of(checkpoint.config) is None:
        return None
    forms = stored_forms(checkpoint, architecture(checkpoint.config).tensor_name, model)
    experts = ((name, 0) for name in model.expert_tensors())
    others = ((name, None) for name in model.layer_tensors())
    names = [(n, e) for n, e in (*experts, *others) if n in MATRICES]
    found = (forms(n, layer, e) for layer in range(model.layers) for n, e in names)
    return next((form for form in found if form.integer), None)


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The module that reads this config's ``model_type``. Raises UnsupportedModelError."""
    kind = config.get("model_type")
    known = {name: module for module in ARCHITECTURES for name in module.MODEL_TYPES}
    if kind is None:
        raise CheckpointError("config.json has no model_type", expected=", ".join(sorted(known)))
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedModelError(
            "architecture", expected=", ".join(sorted(known)), got=str(kind)[:80]
        )
    heads = config.get("architectures") or ()
    if heads and "CausalLM" not in str(heads):
        raise UnsupportedModelError(
            "architectures", expected="a ...ForCausalLM", got=str(heads)[:80]
        )
    return known[kind]
