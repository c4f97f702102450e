"""The registry: complete entries, totals as published, helpful refusals."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.specs.hardware import CPU_FLOPS, D2H, DISK, DRAM, GPU_FLOPS, H2D, HBM, HOST
from headrace.specs.pages import page_layout
from headrace.specs.registry import (
    all_known_hardware,
    known_hardware,
    known_model,
    known_models,
)


@pytest.mark.parametrize("name", known_models())
def test_parameters_recomputed_from_dimensions_match_the_published_sizes(name):
    known = known_model(name)
    assert known.spec.parameters() == pytest.approx(known.parameters, rel=0.005)
    active = known.spec.active_parameters()
    if known.active_without_embeddings:
        active -= known.spec.vocab * known.spec.hidden
    assert active == pytest.approx(known.active, rel=0.03)


def test_the_models_of_the_literature_are_known():
    specs = {name: known.spec for name, known in known_models().items()}
    assert specs["deepseek-v2-lite"].mla is not None
    assert specs["deepseek-v3"].mla.q_rank == 1536
    assert specs["deepseek-v3"].router.kind == "sigmoid"
    assert specs["qwen2-57b-a14b"].shared.gated
    assert specs["deepseek-moe-16b"].dense_layers == 1
    assert not specs["llada-8b"].causal
    assert not specs["llada-8b"].is_moe
    assert [specs["gpt-oss-20b"].window_of(layer) for layer in range(3)] == [128, None, 128]


@pytest.mark.parametrize("name", ["deepseek-moe-16b", "gpt-oss-20b", "qwen1.5-moe-a2.7b"])
def test_experts_are_most_of_a_published_file(name):
    """gpt-oss-20b is published as 13.8 GB: 4.25 bits per weight of an expert, 16 of the rest."""
    known = known_model(name)
    stored = sum(page.bytes for page in page_layout(known.spec))
    expected = {"gpt-oss-20b": 13.76e9}.get(name, 2 * known.parameters)
    assert stored == pytest.approx(expected, rel=0.005)


def test_models_are_found_by_name_and_by_repo_in_any_case():
    assert known_model("Mixtral-8x7B").spec.experts == 8
    assert known_model("allenai/olmoe-1b-7b-0924-instruct").name == "olmoe-1b-7b"
    assert known_model("dbrx").runs is False


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="try: mixtral-8x7b"):
        known_model("mixtral8x7b")


@pytest.mark.parametrize("name", all_known_hardware())
def test_every_machine_has_all_roofs_and_is_not_called_measured(name):
    known = known_hardware(name)
    roofs = {CPU_FLOPS, DRAM, DISK, HOST}
    if known.hardware.has_device:
        roofs |= {GPU_FLOPS, HBM, H2D, D2H}
        assert known.hardware.capacity.keys() >= {"host", "device"}
    assert known.hardware.roofs.keys() == roofs
    assert known.source
    assert known.hardware.lane_rate <= known.hardware.roofs[DISK]
    assert not known.hardware.measured
    curves = known.hardware.efficiency.values()
    assert all(0 < share <= 1 for curve in curves for _, share in curve)


def test_an_unknown_machine_is_refused():
    with pytest.raises(UsageError, match="cpu-2core"):
        known_hardware("abacus")
