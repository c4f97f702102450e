"""What a quantization_config may say, and what it is refused for."""

from __future__ import annotations

import json

import pytest

from headrace.engine.recipe import Recipe
from headrace.errors import CheckpointError, UnsupportedModelError
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.pages import PageTable
from headrace.models.compressed import check_config
from headrace.models.load import architecture, checkpoint_pages, checkpoint_spec
from tests.models.quantized import quantized

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def config(group=None, weights=None, **changes):
    group = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {})} | (group or {})
    whole = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return {"quantization_config": whole | {"config_groups": {"group_0": group}} | changes}


def test_what_other_tools_write_is_taken():
    check_config({})
    check_config(config())
    check_config(config(weights={"strategy": "channel", "group_size": -1, "actorder": "weight"}))
    eight = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
    check_config(config({"input_activations": eight, "format": "int-quantized"}))
    check_config({"compression_config": config()["quantization_config"]})


@pytest.mark.parametrize(
    "given",
    [
        config(quant_method="gptq"),
        config(format="float-quantized"),
        config(weights={"type": "float"}),
        config(weights={"num_bits": 3}),
        config(weights={"strategy": "block"}),
        config(weights={"actorder": "group"}),
        config(weights={"dynamic": True}),
        config({"output_activations": {"num_bits": 8}}),
        config({"input_activations": {"num_bits": 8, "dynamic": False}}),
        config({"input_activations": {"num_bits": 8, "type": "float", "dynamic": True}}),
        config(kv_cache_scheme={"num_bits": 8}),
        config(transform_config={"config_groups": {}, "x": 1}),
    ],
)
def test_what_would_change_results_is_refused(given):
    with pytest.raises(UnsupportedModelError, match="quantization"):
        check_config(given)


@pytest.mark.parametrize(
    "given",
    [{"quantization_config": 4}, config(config_groups={}), config(config_groups={"a": {}})],
)
def test_nonsense_is_refused(given):
    with pytest.raises(CheckpointError, match="quantization_config"):
        check_config(given)


def test_missing_scales_are_named(tmp_path):
    folder = quantized("llama-gqa", tmp_path, Recipe("int4"))
    for path in folder.glob("model*"):
        found = path.read_bytes().replace(b"q_proj.weight_scale", b"q_proj.weight_scalf")
        path.write_bytes(found)
    with pytest.raises(CheckpointError, match=r"scales of .*q_proj\.weight"):
        open_table(folder)


def test_zero_points_of_another_format_are_named(tmp_path):
    folder = quantized("llama-gqa", tmp_path, Recipe("int4", symmetric=False))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert any(name.endswith("weight_zero_point") for name in index["weight_map"])
    path = folder / index["weight_map"]["model.layers.0.self_attn.q_proj.weight_zero_point"]
    data = path.read_bytes()
    at = data.index(b'"model.layers.0.self_attn.q_proj.weight_zero_point":{"dtype":"I32"')
    path.write_bytes(data[:at] + data[at:].replace(b'"I32"', b'"F32"', 1))
    with pytest.raises(CheckpointError, match=r"format of tensor .*weight_zero_point"):
        open_table(folder)


def open_table(folder):
    checkpoint = Checkpoint.open(folder)
    model = checkpoint_spec(checkpoint)
    pages = checkpoint_pages(checkpoint, model)
    PageTable(pages, checkpoint, architecture(checkpoint.config).tensor_name, model).close()
