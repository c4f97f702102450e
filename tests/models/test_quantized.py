"""Checkpoints of integers: every architecture, schedule and body against transformers."""

from __future__ import annotations

import pytest
import torch

from headrace.engine.recipe import Recipe
from headrace.kernels.native import available
from headrace.memory.checkpoint import Checkpoint
from headrace.models.load import checkpoint_pages, checkpoint_spec
from headrace.specs.scratch import torch_bytes
from tests.models.quantized import quantized, widened
from tests.models.test_bodies import PROMPT, close, expected
from tests.models.test_memory import peak_allocated
from tests.models.tiny import CASES, Runner, reference

RECIPES = {
    "int8": Recipe("int8"),
    "int8-packed": Recipe("int8", 32),
    "int4": Recipe("int4"),
    "int4-asymmetric": Recipe("int4", 32, symmetric=False),
    "int8-asymmetric": Recipe("int8", symmetric=False, search=True),
}
BODIES = ["reference", *(["native"] if available() else [])]
EACH = [(case, list(RECIPES)[i % len(RECIPES)]) for i, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    made = quantized("mixtral-e8", folder, RECIPES["int4-asymmetric"], intermediate_size=160)
    return made, expected(reference(widened(made, folder / "wide")), PROMPT)


def prefilled(folder, **settings):
    runner = Runner(folder, **settings)
    return runner.sweep([runner.sequence(PROMPT).segment(0, len(PROMPT))])[0]


def apart(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("case", "recipe"), EACH)
def test_logits_equal_transformers_with_the_same_weights_as_floats(case, recipe, tmp_path):
    folder = quantized(case, tmp_path, RECIPES[recipe])
    wanted = expected(reference(widened(folder, tmp_path / "wide")), PROMPT)[-1]
    for kernels in BODIES:
        close(prefilled(folder, kernels=kernels, activations="f32"), wanted)
        rounded = prefilled(folder, kernels=kernels, activations="int8")
        assert 0 < apart(rounded, wanted) < 0.05


@pytest.mark.skipif(not available(), reason="built without native kernels")
@pytest.mark.parametrize("recipe", ["int8", "int4-asymmetric"])
def test_both_bodies_round_activations_alike(recipe, tmp_path):
    folder = quantized("olmoe-e4-gqa-renormalised-biases", tmp_path, RECIPES[recipe])
    native, torch_ = (prefilled(folder, kernels=kernels) for kernels in ("native", "reference"))
    assert apart(native, torch_) < 0.005  # apart from values that lie on the edge of two integers
    assert apart(native, prefilled(folder, kernels="native", activations="f32")) > 1e-4


@pytest.mark.parametrize("kernels", BODIES)
@pytest.mark.parametrize("schedule", ["resident", "stream", "on_demand", "one_by_one"])
def test_every_schedule_runs_cut_pages_of_integers(schedule, kernels, mixtral):
    folder, wanted = mixtral
    runner = Runner(folder, schedule, cut_bytes=3000, kernels=kernels, activations="f32")
    cut = [p.slices[0] for p in runner.pages if p.role == "expert_down"]
    assert len(cut) > 8  # more than one block per expert
    assert all(s.start % 8 == 0 for s in cut)
    sequence = runner.sequence(PROMPT)
    for rows in (5, 7, 1):
        logits = runner.sweep([sequence.segment(0, rows)])
    close(logits[0], wanted[-1])


@pytest.mark.skipif(not available(), reason="built without native kernels")
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_bits_depend_on_neither_schedule_nor_cuts_nor_neighbours(activations, mixtral):
    folder, _ = mixtral
    alone = prefilled(folder, kernels="native", activations=activations)
    for schedule in ("stream", "on_demand"):
        runner = Runner(folder, schedule, cut_bytes=3000, activations=activations)
        segments = [runner.sequence(p).segment(i, len(p)) for i, p in enumerate((PROMPT, [7] * 9))]
        assert torch.equal(runner.sweep(segments)[0], alone)


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_the_reference_widens_within_its_formula(activations, mixtral):
    folder, _ = mixtral
    runner = Runner(folder, kernels="reference", activations=activations, rows=16, seqs=1)
    sequence = runner.sequence(PROMPT)
    peak = peak_allocated(lambda: runner.run([sequence.segment(0, len(PROMPT))]))
    assert peak <= torch_bytes(runner.model, runner.policy)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_pages_count_the_bytes_that_are_stored(recipe, tmp_path):
    checkpoint = Checkpoint.open(quantized("mixtral-e8", tmp_path, RECIPES[recipe]))
    model = checkpoint_spec(checkpoint)
    pages = checkpoint_pages(checkpoint, model, 4000)
    shapes = sum(t.nbytes for n, t in checkpoint.tensors.items() if n.endswith("weight_shape"))
    assert sum(page.bytes for page in pages) == checkpoint.total_bytes - shapes
    assert model.integers.bits == RECIPES[recipe].bits
