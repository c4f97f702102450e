"""What ``inspect`` says of a model, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.cli.budgets import Budgets, budgets_of
from headrace.cli.model_source import find_model
from headrace.specs.model import ITEM_BYTES, KV_FORMATS, ModelSpec
from headrace.specs.pages import Page, page_layout


@dataclass(frozen=True)
class Inspection:
    """Everything that ``inspect`` prints. ``files`` is None for a registry entry."""

    name: str
    source: str
    model: ModelSpec
    pages: tuple[Page, ...]
    stored_bytes: int
    files: int | None = None
    runs: bool = True
    budgets: Budgets | None = None

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
        }


def inspect_model(name: str) -> Inspection:
    """Gather what is said of a model. Reads headers only; raises ModelError, UsageError."""
    source = find_model(name)
    pages = page_layout(source.model)
    checkpoint = source.checkpoint
    return Inspection(
        source.name,
        "registry" if checkpoint is None else "local folder",
        source.model,
        pages,
        sum(role_bytes(source.model).values()) if checkpoint is None else checkpoint.total_bytes,
        None if checkpoint is None else len(checkpoint.files),
        source.runs,
        budgets_of(source.model, pages),
    )


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
