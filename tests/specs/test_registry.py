"""The registry: complete entries, totals as published, helpful refusals."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST
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
    assert known.spec.active_parameters() == pytest.approx(known.active, rel=0.03)


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
    assert known.hardware.roofs.keys() == {CPU_FLOPS, DRAM, DISK, HOST}
    assert known.source
    assert known.hardware.lane_rate <= known.hardware.roofs[DISK]
    assert not known.hardware.measured
    curves = known.hardware.efficiency.values()
    assert all(0 < share <= 1 for curve in curves for _, share in curve)


def test_an_unknown_machine_is_refused():
    with pytest.raises(UsageError, match="cpu-2core"):
        known_hardware("abacus")
