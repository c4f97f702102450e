"""What ``inspect`` says of a model, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.cli.budgets import Budgets, budgets_of
from headrace.cli.model_source import find_model
from headrace.errors import UsageError
from headrace.specs.model import ITEM_BYTES, KV_FORMATS, ModelSpec
from headrace.specs.pages import Page, page_layout

if TYPE_CHECKING:
    from headrace.memory.checkpoint import Checkpoint
    from headrace.memory.nonfinite import NonFinite


@dataclass(frozen=True)
class Inspection:
    """Everything that ``inspect`` prints. ``files`` is None for a registry entry, ``nonfinite``
    (tensors that hold NaN or infinity) when nobody looked."""

    name: str
    source: str
    model: ModelSpec
    pages: tuple[Page, ...]
    stored_bytes: int
    files: int | None = None
    runs: bool = True
    budgets: Budgets | None = None
    nonfinite: tuple[NonFinite, ...] | None = None
    names_code: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; bytes and counts as integers."""
        model, pages = self.model, self.pages
        return {
            "name": self.name,
            "source": self.source,
            "architecture": model.architecture,
            "dtype": model.weight_dtype,
            "parameters": model.parameters(),
            "active_parameters": model.active_parameters(),
            "stored_bytes": self.stored_bytes,
            "files": self.files,
            "runs": self.runs,
            "bytes_by_role": role_bytes(model),
            "shape": shape_of(model),
            "max_positions": model.max_positions,
            "pages": len(pages),
            "largest_page_bytes": max(p.bytes for p in pages),
            "kv_bytes_per_token": {d: model.kv_bytes_per_token(d) for d in KV_FORMATS},
            "budgets": None if self.budgets is None else vars(self.budgets),
            "names_code": self.names_code,
            "nonfinite": None if self.nonfinite is None else [_told(n) for n in self.nonfinite],
        }


def inspect_model(name: str, check_weights: bool = False) -> Inspection:
    """Gather what is said of a model. Reads headers, and all weights when they are to be
    checked; raises ModelError, UsageError, StorageError."""
    source = find_model(name)
    checkpoint = source.checkpoint
    if checkpoint is None and check_weights:
        raise UsageError("--check-weights", expected="a checkpoint folder", got=name)
    pages = page_layout(source.model)
    return Inspection(
        source.name,
        "registry" if checkpoint is None else "local folder",
        source.model,
        pages,
        sum(role_bytes(source.model).values()) if checkpoint is None else checkpoint.total_bytes,
        None if checkpoint is None else len(checkpoint.files),
        source.runs,
        budgets_of(source.model, pages),
        _nonfinite(checkpoint) if checkpoint is not None and check_weights else None,
        checkpoint is not None and checkpoint.names_code,
    )


def _nonfinite(checkpoint: Checkpoint) -> tuple[NonFinite, ...]:
    from headrace.memory.nonfinite import find_nonfinite

    return tuple(find_nonfinite(checkpoint))


def _told(found: NonFinite) -> dict[str, Any]:
    place = {"tensor": found.tensor, "layer": found.layer, "expert": found.expert}
    return {**place, "count": found.count, "index": [*found.index]}


def role_bytes(model: ModelSpec) -> dict[str, int]:
    """Bytes by what they are for; the values sum to all the weights of the model."""
    layers, rest = range(model.layers), model.global_tensors()
    item = ITEM_BYTES[model.weight_dtype]
    tensors = [(n, item * math.prod(s)) for i in layers for n, s in model.layer_tensors(i).items()]
    router = sum(size for name, size in tensors if name in _ROUTING)
    norms = sum(size for name, size in tensors if name.endswith("norm"))
    return {
        "experts": sum(_expert_bytes(model, layer, routed=True) for layer in layers),
        "shared": sum(_expert_bytes(model, layer, routed=False) for layer in layers),
        "attention": sum(size for _, size in tensors) - router - norms,
        "router": router,
        "norms": norms + item * math.prod(rest["final_norm"]),
        "embeddings": item * math.prod(rest["embed"]),
        "head": item * math.prod(rest["head"]) if "head" in rest else 0,
    }


_ROUTING = ("router", "router_bias", "shared_gate")


def _expert_bytes(model: ModelSpec, layer: int, *, routed: bool) -> int:
    """Bytes of a layer's routed experts (of its FFN, in a dense model), or of the others."""
    each = range(model.experts_in(layer))
    found = [e for e in each if (model.is_moe and model.visited_by_all(layer, e)) != routed]
    return sum(
        model.expert_bytes(math.prod(shape), matrix=len(shape) == 2)
        for expert in found
        for shape in model.expert_tensors(layer, expert).values()
    )


def shape_of(model: ModelSpec) -> dict[str, int]:
    """The dimensions, under the names that ``bench make-checkpoint`` takes."""
    return {
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "experts": model.experts,
        "top_k": model.top_k,
        "width": model.ffn_width,
        "vocab": model.vocab,
    }
