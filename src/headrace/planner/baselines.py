"""Naive and published ways to run a job beside an accelerator, as families of policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.planner.candidates import Situation
from headrace.planner.device_search import OWN, Traits
from headrace.specs.model import ModelSpec
from headrace.specs.registry import known_models

if TYPE_CHECKING:
    from headrace.planner.published import Row

_FEW = (2, 8, 16)

FAMILIES: Mapping[str, Traits] = {
    "resident": Traits("resident", (1,)),
    "one_by_one": Traits("one_by_one", _FEW, coarse=True),
    "flexgen": Traits("flexgen", _FEW, coarse=True),
    "flexgen_c": Traits("flexgen_c", _FEW, coarse=True),
    "fastdecode": Traits("fastdecode", _FEW, coarse=True),
    # DeepSpeed ZeRO-Inference: layers stream under one batch, whose KV is on the device
    "zero": Traits("flexgen", (1,), held=False, kv_on_device=1.0),
    "moe_lightning": OWN[0],
}
"""Name -> what such a runtime may choose. All have this one's traits otherwise: pinned weights,
prompts beside decodes, nothing padded; each is the best of its family by the same closed form."""


def published(at: Situation) -> Row | None:
    """MoE-Lightning's policy for this model and machine (Cao et al. 2024), of the output length
    nearest to the job's; un-padded where there is such a one. None where none was published, or
    what was asked for fixes what it would choose: its own rule (the best policy of its schedule)
    stands for it then."""
    fixed = at.overrides
    if fixed.max_seqs or fixed.max_rows or fixed.micro_batches:
        return None
    figures = at.known.published
    every = (*figures.rows, *figures.carried, *figures.several)
    rows = [row for row in every if row.runtime == _RUNTIME and row.machine == at.hardware.name]
    models = known_models() if rows else {}
    rows = [row for row in rows if row.mu and _alike(models[row.model].spec, at.model)]
    mean = at.workload.gen_tokens / max(1, at.workload.requests)
    return min(rows, key=lambda row: (row.padded, abs(row.gen - mean)), default=None)


_RUNTIME = "moe-lightning"


def _alike(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether both have the same layers, in any format."""
    return _sizes(one) == _sizes(other)


def _sizes(model: ModelSpec) -> tuple[int, ...]:
    return model.layers, model.hidden, model.ffn_width, model.experts, model.top_k
