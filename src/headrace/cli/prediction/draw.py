"""The runs of the study, drawn from a seed: model shapes x budgets x batch x lengths x schedules.

Nothing here has seen a machine: what a seed draws is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, NamedTuple

from headrace.specs.workload import Workload

SEED = 20261260
"""Drawn from unless another is given. Committed before the study that it was chosen for."""

BUDGETS = (0.35, 0.5, 0.65, 0.8)
"""Of the bytes of a model's weights, where it is not to fit."""

STREAMED = 0.7
"""Share of the runs whose model is not to fit."""

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = (16, 32, 64, 128, 256)
OUTPUTS = (8, 16, 32, 64, 128)
SCHEDULES = (None, None, "stream", "one_by_one", "on_demand")
"""Where the model is not to fit; None leaves it to the planner."""


class Shape(NamedTuple):
    """A small model of random weights, as ``bench make-checkpoint`` makes them."""

    arch: str
    dtype: str
    sizes: Mapping[str, int]


SHAPES: Mapping[str, Shape] = {
    "wide": Shape(
        "mixtral",
        "bf16",
        {"layers": 6, "hidden": 1024, "heads": 16, "kv_heads": 4, "experts": 8, "top_k": 2}
        | {"ffn_width": 3584, "vocab": 32000},
    ),
    "narrow": Shape(
        "olmoe",
        "bf16",
        {"layers": 8, "hidden": 1024, "heads": 16, "experts": 32, "top_k": 4}
        | {"ffn_width": 512, "vocab": 32000},
    ),
    "deep": Shape(
        "mixtral",
        "bf16",
        {"layers": 16, "hidden": 512, "heads": 8, "kv_heads": 2, "experts": 16, "top_k": 2}
        | {"ffn_width": 1024, "vocab": 8000},
    ),
    "many": Shape(
        "olmoe",
        "bf16",
        {"layers": 8, "hidden": 768, "heads": 12, "experts": 64, "top_k": 8}
        | {"ffn_width": 384, "vocab": 16000},
    ),
    "half": Shape(
        "mixtral",
        "f16",
        {"layers": 4, "hidden": 1536, "heads": 12, "kv_heads": 4, "experts": 4, "top_k": 2}
        | {"ffn_width": 4096, "vocab": 16000},
    ),
    "dense": Shape(
        "llama",
        "bf16",
        {"layers": 16, "hidden": 1024, "heads": 16, "kv_heads": 4, "ffn_width": 4096}
        | {"vocab": 16000},
    ),
}
"""About 5 GB of checkpoints in all."""


@dataclass(frozen=True)
class Case:
    """One run: ``budget`` is a share of the weights' bytes (None: all fits), lengths are the
    middle of what requests have, ``seed`` draws theirs."""

    index: int
    shape: str
    budget: float | None
    schedule: str | None
    batch: int
    prompt_len: int
    gen_len: int
    seed: str

    def workload(self, requests: int) -> Workload:
        """``requests`` of them: lengths from half to one and a half of the middle, all known."""
        draw = Random(self.seed)
        pairs = [(_near(draw, self.prompt_len), _near(draw, self.gen_len)) for _ in range(requests)]
        prompts, outputs = zip(*pairs, strict=True)
        return Workload(prompts, outputs, assumed=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def draw_cases(seed: int, count: int, shapes: Mapping[str, Shape] = SHAPES) -> list[Case]:
    """``count`` runs; every shape comes equally often, in an order that is drawn as well."""
    draw = Random(seed)
    names: list[str] = []
    while len(names) < count:
        names += draw.sample(sorted(shapes), len(shapes))
    return [_case(f"{seed}-{index}", index, name) for index, name in enumerate(names[:count])]


def _case(seed: str, index: int, shape: str) -> Case:
    draw = Random(seed)
    budget = draw.choice(BUDGETS) if draw.random() < STREAMED else None
    schedule = draw.choice(SCHEDULES)
    return Case(
        index=index,
        shape=shape,
        budget=budget,
        schedule=None if budget is None else schedule,
        batch=draw.choice(BATCHES),
        prompt_len=draw.choice(PROMPTS),
        gen_len=draw.choice(OUTPUTS),
        seed=seed,
    )


def _near(draw: Random, middle: int) -> int:
    return draw.randint(max(1, middle // 2), middle + middle // 2)
