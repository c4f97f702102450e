"""Naive and published ways to run a job beside an accelerator, as families of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.planner.candidates import Situation
from headrace.planner.device_search import OWN, Traits
from headrace.specs.model import ModelSpec

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


@dataclass(frozen=True)
class Published:
    """A published policy of MoE-Lightning: rows of a micro-batch and how many, for outputs of
    ``gen`` tokens (Cao et al. 2024, un-padded runs of Mixtral-8x7B on a T4 host)."""

    gen: int
    micro_batch: int
    parts: int


_ON_T4 = (
    Published(32, 164, 19),
    Published(64, 164, 19),
    Published(128, 164, 14),
    Published(256, 100, 15),
)


def published(at: Situation) -> Published | None:
    """MoE-Lightning's policy for this model, machine and output length; None where there is none,
    and its own rule (the best policy of its schedule) stands for it."""
    if at.hardware.name != "t4" or not _is_mixtral_8x7b(at.model):
        return None
    mean = at.workload.gen_tokens / max(1, at.workload.requests)
    return min(_ON_T4, key=lambda policy: abs(policy.gen - mean))


def _is_mixtral_8x7b(model: ModelSpec) -> bool:
    sizes = (model.layers, model.hidden, model.ffn_width, model.experts, model.top_k)
    return sizes == (32, 4096, 14336, 8, 2)
