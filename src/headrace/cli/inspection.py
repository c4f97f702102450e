"""What ``inspect`` says of a model, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.cli.budgets import Budgets, budgets_of
from headrace.cli.model_source import find_model
from headrace.errors import UsageError
from headrace.specs.model import ITEM_BYTES, ModelSpec
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
            "kv_bytes_per_token": {d: model.kv_bytes_per_token(d) for d in ITEM_BYTES},
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
    item, layers = ITEM_BYTES[model.weight_dtype], model.layers

    def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
        return item * sum(map(math.prod, shapes.values()))

    layer, rest = model.layer_tensors(), model.global_tensors()
    router = {n: s for n, s in layer.items() if n == "router"}
    norms = {n: s for n, s in layer.items() if n.endswith("norm")}
    attention = {n: s for n, s in layer.items() if n not in router and n not in norms}
    return {
        "experts": layers * model.experts * size(model.expert_tensors()),
        "attention": layers * size(attention),
        "router": layers * size(router),
        "norms": layers * size(norms) + size({"final_norm": rest["final_norm"]}),
        "embeddings": size({"embed": rest["embed"]}),
        "head": size({"head": rest["head"]}) if "head" in rest else 0,
    }


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
