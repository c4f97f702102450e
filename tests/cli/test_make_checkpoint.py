"""Checkpoints of random weights: they load in transformers and have the shape asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headrace.cli.main import run
from headrace.cli.make_checkpoint import config_of, make_checkpoint, shape_spec, tensors_of
from headrace.cli.random_weights import RandomWeights, to_format
from headrace.errors import StorageError, UnsupportedModelError, UsageError
from headrace.memory.checkpoint import Checkpoint
from headrace.models.load import model_spec
from headrace.specs.model import ModelSpec
from headrace.specs.registry import known_model

SIZES = {"layers": 2, "hidden": 32, "heads": 4, "ffn_width": 48, "vocab": 300}


@pytest.mark.parametrize("architecture", ["mixtral", "olmoe", "llama", "mistral"])
def test_spec_read_back_is_the_one_written(architecture, tmp_path):
    spec = shape_spec(architecture, None, "bf16", {**SIZES, "kv_heads": 2})
    make_checkpoint(spec, tmp_path / "m", shard_bytes=50_000)
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert model_spec(checkpoint.config) == spec
    assert checkpoint.total_bytes == 2 * spec.parameters()
    assert len(checkpoint.files) > 1


@pytest.mark.parametrize("architecture", ["mixtral", "olmoe", "llama", "mistral"])
def test_loads_in_transformers_and_generates(architecture, tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    spec = shape_spec(architecture, None, "f32", SIZES)
    make_checkpoint(spec, tmp_path / "m", seed=1)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.num_parameters() == spec.parameters()
    logits = model(torch.tensor([[1, 5, 9]])).logits
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std() < 3.0


@pytest.mark.parametrize("vocab", [8, 120, 259, 300])
def test_tokenizer_works_in_transformers(vocab, tmp_path):
    transformers = pytest.importorskip("transformers")
    make_checkpoint(shape_spec("mixtral", None, "bf16", {**SIZES, "vocab": vocab}), tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert len(tokenizer) == vocab
    ids = tokenizer("Hello, you.\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert max(ids) < vocab
    if vocab >= 259:
        ids = tokenizer("naïve 漢字 🙂  x\t")["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "naïve 漢字 🙂  x\t"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<s><|user|>\nHi\n<|assistant|>\n"
    assert all(isinstance(tokenizer.decode([i]), str) for i in range(vocab))


def test_command_writes_and_reports(tmp_path, capsys):
    folder = tmp_path / "llama"
    assert run(["bench", "make-checkpoint", str(folder), "--arch", "llama", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == 2 * said["parameters"] == Checkpoint.open(folder).total_bytes


def test_like_takes_the_shape_of_a_known_model_with_changes():
    spec = shape_spec("mixtral", "olmoe-1b-7b", "bf16", {"layers": 1})
    assert spec.layers == 1
    known = known_model("olmoe-1b-7b").spec
    assert (spec.experts, spec.qk_norm, spec.renormalise) == (known.experts, True, False)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--arch", "gpt"], "--arch"),
        (["--dtype", "int3"], "--dtype"),
        (["--arch", "llama", "--experts", "4"], "--experts"),
        (["--arch", "mixtral", "--experts", "1", "--top-k", "1"], "--experts"),
        (["--arch", "olmoe", "--head-dim", "2"], "--head-dim"),
        (["--head-dim", "3"], "--head-dim"),
        (["--heads", "3", "--kv-heads", "2"], "multiple"),
        (["--top-k", "9"], "top_k"),
        (["--shard-size", "big"], "not a size"),
        (["--like", "olmoe-1b-7b", "--arch", "olmoe"], "exclude"),
        (["--like", "dbrx"], "architecture"),
    ],
)
def test_shapes_that_cannot_be_are_refused(arguments, part, tmp_path, capsys):
    assert run(["bench", "make-checkpoint", str(tmp_path / "m"), *arguments]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_existing_files_and_full_disks_are_refused(tmp_path, monkeypatch):
    spec = shape_spec("llama", None, "bf16", SIZES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        make_checkpoint(spec, tmp_path / "mine")
    huge = ModelSpec("llama", 10**6, 8192, 64, 64, 128, 8192, 32000)
    with pytest.raises(StorageError, match="too little space"):
        make_checkpoint(huge, tmp_path / "huge")
    assert not (tmp_path / "huge").exists()


def test_what_is_cut_short_leaves_an_empty_folder_that_may_be_named_again(tmp_path):
    spec, folder = shape_spec("llama", None, "bf16", SIZES), tmp_path / "m"

    def interrupt(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(spec, folder, written=interrupt)
    assert list(folder.iterdir()) == []
    assert make_checkpoint(spec, folder) == Checkpoint.open(folder).total_bytes


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make"):
        make_checkpoint(shape_spec("llama", None, "bf16", SIZES), tmp_path / "file" / "m")


def test_unknown_architecture_has_no_config():
    with pytest.raises(UnsupportedModelError):
        config_of(ModelSpec("gpt", 1, 8, 1, 1, 8, 8, 8))


def test_weights_are_normal_and_the_same_for_the_same_seed():
    draw = RandomWeights("f32", 0)
    values = np.concatenate(list(draw.chunks("w", (512, 256))))
    assert values.std() == pytest.approx(1 / 16, rel=0.02)
    assert abs(values.mean()) < 1e-3
    again = np.concatenate(list(RandomWeights("f32", 0).chunks("w", (512, 256))))
    assert (values == again).all()
    for other in (RandomWeights("f32", 1).chunks("w", (512, 256)), draw.chunks("v", (512, 256))):
        assert (values != np.concatenate(list(other))).mean() > 0.9


def test_vectors_are_ones_and_biases_zeros():
    draw = RandomWeights("f32", 0)
    assert (next(draw.chunks("norm.weight", (8,))) == 1).all()
    assert (next(draw.chunks("q_proj.bias", (8,))) == 0).all()


def test_bf16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ours = to_format(values, "bf16")
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (ours == theirs).all()
    assert to_format(values, "f16").dtype == np.float16


def test_tensors_cover_every_parameter_once():
    spec = shape_spec("mixtral", None, "bf16", SIZES)
    tensors = list(tensors_of(spec))
    assert sum(int(np.prod(shape)) for *_, shape in tensors) == spec.parameters()
    assert len({t[:3] for t in tensors}) == len(tensors)
