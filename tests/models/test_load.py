"""config.json in both dialects, and what is refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import CheckpointError, ModelError, UnsupportedModelError
from headrace.memory.checkpoint import Checkpoint
from headrace.models.load import ARCHITECTURES, architecture, checkpoint_spec, model_spec
from tests.models.tiny import CASES, build

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
OLMOE = LLAMA | {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
MISTRAL = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}


def test_both_dialects_of_rope_and_dtype_give_one_spec():
    old = {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "torch_dtype": "bfloat16",
    }
    new = {
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
        "dtype": "bfloat16",
    }
    spec = model_spec(LLAMA | old)
    assert spec == model_spec(LLAMA | new)
    assert spec.rope.theta == 5e5
    assert spec.weight_dtype == "bf16"
    assert dict(spec.rope.scaling) == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "family"),
    [(LLAMA, "Llama"), (MISTRAL, "Mistral"), (MIXTRAL, "Mixtral"), (OLMOE, "Olmoe")],
)
def test_defaults_of_missing_keys_are_those_of_transformers(config, family):
    theirs = getattr(transformers, f"{family}Config")(
        **{k: v for k, v in config.items() if k not in ("model_type", "max_position_embeddings")}
    )
    spec = model_spec({k: v for k, v in config.items() if k != "max_position_embeddings"})
    assert spec.kv_heads == theirs.num_key_value_heads
    assert spec.norm_eps == theirs.rms_norm_eps
    assert spec.max_positions == theirs.max_position_embeddings
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.tied_embeddings == theirs.tie_word_embeddings
    assert spec.sliding_window == getattr(theirs, "sliding_window", None)


@pytest.mark.parametrize("case", list(CASES))
def test_every_tensor_of_a_saved_checkpoint_has_its_name_and_shape(case, tmp_path):
    build(case, tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    spec, names = model_spec(checkpoint.config), architecture(checkpoint.config).tensor_name
    wanted = {names(n, None, None): s for n, s in spec.global_tensors().items()}
    for layer in range(spec.layers):
        wanted |= {names(n, layer, None): s for n, s in spec.layer_tensors().items()}
        for expert in range(spec.experts):
            wanted |= {names(n, layer, expert): s for n, s in spec.expert_tensors().items()}
    assert wanted == {name: t.shape for name, t in checkpoint.tensors.items()}


def test_the_embeddings_stored_format_wins_over_the_announced_one():
    config = LLAMA | {"dtype": "float32"}
    assert model_spec(config, {"model.embed_tokens.weight": "f16"}).weight_dtype == "f16"
    with pytest.raises(UnsupportedModelError, match="f8_e4m3"):
        model_spec(config, {"model.embed_tokens.weight": "f8_e4m3"})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden_size": "64"}, CheckpointError),
        ({"hidden_size": True}, CheckpointError),
        ({"hidden_size": 1 << 60}, CheckpointError),
        ({"num_hidden_layers": 0}, CheckpointError),
        ({"vocab_size": None}, CheckpointError),
        ({"num_attention_heads": -4}, CheckpointError),
        ({"rms_norm_eps": float("nan")}, CheckpointError),
        ({"rms_norm_eps": "1e-5"}, CheckpointError),
        ({"tie_word_embeddings": "no"}, CheckpointError),
        ({"rope_theta": -1.0}, CheckpointError),
        ({"rope_scaling": "linear"}, CheckpointError),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, CheckpointError),
        ({"model_type": None}, CheckpointError),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModelError),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, UnsupportedModelError),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError),
        ({"num_key_value_heads": 3}, UnsupportedModelError),
        ({"head_dim": 7}, UnsupportedModelError),
        ({"hidden_act": "gelu"}, UnsupportedModelError),
        ({"quantization_config": {"bits": 4}}, UnsupportedModelError),
        ({"dtype": "float8_e4m3fn"}, UnsupportedModelError),
        ({"model_type": "gpt2"}, UnsupportedModelError),
        ({"model_type": ["llama"]}, UnsupportedModelError),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedModelError),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_name(change, error):
    with pytest.raises(error):
        model_spec(LLAMA | change)


@pytest.mark.parametrize(
    "change", [{"num_local_experts": 16384}, {"vocab_size": 1 << 24}, {"num_hidden_layers": 4096}]
)
def test_a_config_larger_than_its_weights_is_refused_before_pages_are_made(change, tmp_path):
    build("mixtral-e8", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="more weights than the files hold"):
        checkpoint_spec(Checkpoint.open(tmp_path))


def test_yarn_needs_a_base_above_one():
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}
    with pytest.raises(CheckpointError, match="rope_theta with yarn"):
        model_spec(LLAMA | {"rope_parameters": yarn})


def test_refusals_of_experts_and_layer_patterns():
    with pytest.raises(CheckpointError):
        model_spec(MIXTRAL | {"num_experts_per_tok": 9})
    with pytest.raises(UnsupportedModelError):
        model_spec(MIXTRAL | {"num_local_experts": 1, "num_experts_per_tok": 1})
    with pytest.raises(UnsupportedModelError):
        model_spec(OLMOE | {"head_dim": 32})
    with pytest.raises(UnsupportedModelError):
        model_spec(MISTRAL | {"layer_types": ["full_attention", "sliding_attention"]})


def test_window_is_none_when_no_position_can_leave_it():
    assert model_spec(MISTRAL | {"sliding_window": 2048}).sliding_window is None
    assert model_spec(MISTRAL | {"sliding_window": 100}).sliding_window == 100
    assert model_spec(MISTRAL | {"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize("module", ARCHITECTURES)
def test_unknown_logical_names_are_refused(module):
    with pytest.raises(UnsupportedModelError):
        module.tensor_name("conv", 0, 0)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from([LLAMA, MISTRAL, MIXTRAL, OLMOE]), st.data())
def test_hostile_configs_are_run_or_refused_but_never_crash(base, data):
    keys = [*base, "head_dim", "rope_parameters", "rope_scaling", "sliding_window", "dtype"]
    keys += [
        "layer_types",
        "architectures",
        "clip_qkv",
        "rope_theta",
        "attention_bias",
        "norm_topk_prob",
    ]
    change = data.draw(st.dictionaries(st.sampled_from(keys), _JSON, max_size=3))
    with contextlib.suppress(ModelError):
        model_spec(base | change)


def test_specs_are_read_without_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    code = (
        "import json, sys; from headrace.models.load import model_spec;"
        f"print(model_spec(json.load(open({str(tmp_path / 'config.json')!r}))).experts,"
        " 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "False"]
