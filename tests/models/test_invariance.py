"""Law 10 on whole models: with native kernels, a token's logits have the same bits whoever stands
beside it and however the run is cut: chunks, micro-batches, schedules, pages, threads, preemption.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from headrace.engine.recipe import Recipe
from headrace.kernels import native
from headrace.kernels.select import select
from tests.models.quantized import quantized
from tests.models.tiny import Runner, Toy, build

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

# Wide enough that panels are packed, and products shared, by several threads.
LARGER = {"hidden_size": 192, "intermediate_size": 150, "max_position_embeddings": 512}
WHOLE_GROUPS = {**LARGER, "intermediate_size": 160, "head_dim": 32}
"""Rows that groups of 32 divide."""


class Form(NamedTuple):
    """A checkpoint of ``tiny.CASES``, the formats of its weights and KV, what the weights meet."""

    case: str
    dtype: torch.dtype
    kv_dtype: str
    recipe: Recipe | None = None
    activations: str = "int8"

    def save(self, folder: Path) -> Path:
        """Write it into ``folder``, and say where it lies."""
        if self.recipe is None:
            build(self.case, folder, self.dtype, **LARGER)
            return folder
        return quantized(self.case, folder, self.recipe, self.dtype, **WHOLE_GROUPS)


OLMOE = "olmoe-e4-gqa-renormalised-biases"
INT4 = Recipe("int4", 32, symmetric=False, search=False)
FORMS = {
    "mixtral-e8": Form("mixtral-e8", torch.bfloat16, "f16"),
    "olmoe-e4": Form(OLMOE, torch.float16, "bf16"),
    "mixtral-window-tied": Form("mixtral-e5-window-tied", torch.float32, "f16"),
    "llama-tied-biases": Form("llama-mha-tied-biases", torch.bfloat16, "f32"),
    "kv-int8": Form("mixtral-e5-window-tied", torch.bfloat16, "int8"),
    "int8": Form(OLMOE, torch.bfloat16, "f16", Recipe("int8")),
    "int4": Form("mixtral-e8", torch.bfloat16, "int8", INT4),
    "bf16-activations": Form("mixtral-e8", torch.bfloat16, "f16", activations="bf16"),
}


class Way(NamedTuple):
    """How the sequences run together."""

    seed: int
    schedule: str
    micro_batches: int
    cut_bytes: int
    threads: int
    kv_block: int
    preemptions: int


WAYS = (
    Way(0, "resident", 1, 1 << 20, 2, 4, 0),
    Way(1, "stream", 2, 1 << 20, 1, 4, 3),
    Way(2, "on_demand", 3, 40_000, 3, 8, 0),
    Way(3, "one_by_one", 2, 40_000, 2, 16, 3),
)
MET = [(form, way) for i, form in enumerate(FORMS) for way in (WAYS if i < 4 else WAYS[1::2])]
"""What is tested: the last forms in two ways only."""

LENGTHS = (1, 3, 40, 130)
ANSWER = 2
"""Tokens after each prompt, the same in every run: what is compared are logits."""

Logits = dict[tuple[int, int], torch.Tensor]
"""(sequence, tokens known) -> logits of the next."""


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """A checkpoint, what runs it, and the logits of every sequence run alone."""
    form = FORMS[request.param]
    folder = form.save(tmp_path_factory.mktemp(request.param))
    how = {"kernels": "native", "kv_dtype": form.kv_dtype, "activations": form.activations}
    runner = Runner(folder, **how)
    alone: Logits = {}
    for number, tokens in enumerate(sequences()):
        toy = runner.sequence(tokens[: LENGTHS[number]], capacity=200)
        for known in range(LENGTHS[number], len(tokens) + 1):
            toy.tokens = tokens[:known]
            alone[number, known] = runner.sweep([toy.segment(0, known - toy.cached)])[0]
    return folder, how, alone


def sequences() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, 101) for _ in range(n + ANSWER)] for n in LENGTHS]


def in_company(runner: Runner, draw: random.Random, mbs: int, preemptions: int) -> Logits:
    """All sequences together, in random chunks over random micro-batches; now and then one
    loses its cache and is computed again, elsewhere."""
    whole, found = sequences(), {}
    spare = runner.sequence([], capacity=200).blocks
    toys = [runner.sequence(t[:n], capacity=200) for t, n in zip(whole, LENGTHS, strict=True)]
    while any(len(found_of(found, i)) <= ANSWER for i in range(len(toys))):
        parts: list[list] = [[] for _ in range(mbs)]
        sampled: list[list[tuple[int, int]]] = [[] for _ in range(mbs)]
        for number in draw.sample(range(len(toys)), draw.randint(1, len(toys))):
            toy = toys[number]
            if preemptions and toy.cached and draw.random() < 0.2:
                preemptions -= 1
                spare, blocks = toy.blocks, spare
                toys[number] = toy = Toy(toy.tokens, blocks)
            rows = min(len(toy.tokens) - toy.cached, draw.choice([1, 17, 64, 200]))
            mb = draw.randrange(mbs)
            if rows and sum(s.rows for s in parts[mb]) + rows <= runner.policy.mu:
                parts[mb].append(toy.segment(number, rows))
                if parts[mb][-1].sample:
                    sampled[mb].append((number, len(toy.tokens)))
        logits = runner.sweep(*parts)
        for row, (number, known) in zip(logits, (k for s in sampled for k in s), strict=True):
            found[number, known] = row
            toys[number].tokens = whole[number][: known + 1]
    return found


def found_of(found: Logits, number: int) -> list[int]:
    return [known for n, known in found if n == number]


@pytest.mark.parametrize(
    ("model", "way"), MET, indirect=["model"], ids=[f"{form}-{w.schedule}" for form, w in MET]
)
def test_logits_have_the_same_bits_in_any_company(model, way):
    folder, how, alone = model
    runner = Runner(
        folder,
        way.schedule,
        rows=300,
        micro_batches=way.micro_batches,
        cut_bytes=way.cut_bytes,
        kv_block=way.kv_block,
        kernel_threads=way.threads,
        **how,
    )
    found = in_company(runner, random.Random(way.seed), way.micro_batches, way.preemptions)
    assert found.keys() == alone.keys()
    for key, logits in found.items():
        assert torch.equal(logits.view(torch.int32), alone[key].view(torch.int32)), key


def test_numerics_of_native_kernels_name_neither_torch_nor_threads():
    assert select("native", 1).numerics == select("native", 7).numerics
    assert "torch" not in select("native").numerics
