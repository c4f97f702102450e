"""A bf16 checkpoint with activations rounded to bf16: both bodies, law 10, memory."""

from __future__ import annotations

import pytest
import torch

from headrace.kernels.native import available
from headrace.kernels.select import select
from headrace.specs.scratch import torch_bytes
from tests.models.test_bodies import PROMPT
from tests.models.test_memory import peak_allocated
from tests.models.test_quantized import apart, prefilled
from tests.models.tiny import Runner, build

native = pytest.mark.skipif(not available(), reason="built without native kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bf16")
    build("mixtral-e8", made, torch.bfloat16)
    return made


@native
def test_both_bodies_round_alike_and_what_was_asked(folder):
    ours = prefilled(folder, kernels="native", activations="bf16")
    theirs = prefilled(folder, kernels="reference", activations="bf16")
    exact = prefilled(folder, kernels="native", activations="f32")
    assert apart(ours, theirs) < 1e-3  # apart from values on the edge of two bf16
    assert 1e-4 < apart(ours, exact) < 0.02


@native
def test_bits_depend_on_neither_schedule_nor_cuts_nor_neighbours(folder):
    alone = prefilled(folder, kernels="native", activations="bf16")
    for schedule in ("stream", "on_demand"):
        runner = Runner(folder, schedule, cut_bytes=3000, activations="bf16", kernel_threads=2)
        segments = [runner.sequence(p).segment(i, len(p)) for i, p in enumerate((PROMPT, [7] * 9))]
        assert torch.equal(runner.sweep(segments)[0], alone)


def test_the_reference_rounds_within_its_formula(folder):
    runner = Runner(folder, kernels="reference", activations="bf16", rows=16, seqs=1)
    sequence = runner.sequence(PROMPT)
    peak = peak_allocated(lambda: runner.run([sequence.segment(0, len(PROMPT))]))
    assert peak <= torch_bytes(runner.model, runner.policy)


@pytest.mark.parametrize("kernels", ["reference", *(["native"] if available() else [])])
def test_numerics_say_so(kernels):
    assert select(kernels, 1, "bf16").numerics.endswith("-x_bf16")
    assert "x_bf16" not in select(kernels, 1).numerics + select(kernels, 1, "f32").numerics
