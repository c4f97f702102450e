"""``quantize``: what is written, what an end at any point leaves behind, what is refused."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from headrace.engine.quantizing import ELEMENT_BYTES, STATE, Quantizing
from headrace.engine.recipe import Recipe
from headrace.errors import (
    BudgetError,
    CheckpointError,
    LockedError,
    SignatureError,
    StorageError,
    UsageError,
)
from headrace.memory.write_shard import PARTIAL
from tests.engine.processes import running
from tests.models.quantized import SIZES, decoded, quantize_folder, tensors_of
from tests.models.test_memory import peak_allocated
from tests.models.tiny import build

SHARD = 20_000


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    build("mixtral-e5-window-tied", folder, torch.bfloat16, **SIZES, num_hidden_layers=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(f'{{"name": "{name}"}}')
    (folder / "pytorch_model.bin").write_bytes(b"never copied")
    return folder


def run(source, folder, recipe=None, **settings):
    recipe = recipe or Recipe("int4", symmetric=False)
    return quantize_folder(source, folder, recipe, **({"shard_bytes": SHARD} | settings))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != STATE}


@pytest.mark.parametrize(("recipe", "most"), [(Recipe("int8"), 0.01), (Recipe("int4"), 0.12)])
def test_integers_are_close_and_everything_else_is_as_it_was(recipe, most, source, tmp_path):
    made = run(source, tmp_path / "made", recipe)
    before, after = tensors_of(source), decoded(tensors_of(tmp_path / "made"), recipe.bits)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        changed = any(part in name for part in ("_proj", ".w1", ".w2", ".w3"))
        assert changed == (not torch.equal(tensor.float(), after[name]))
    for layer in range(1):
        names = [n for n in before if f"layers.{layer}.self_attn" in n]
        error = sum((after[n] - before[n].float()).square().sum() for n in names)
        whole = sum(before[n].float().square().sum() for n in names)
        assert made.errors.relative(layer, "attention") == pytest.approx(
            float((error / whole) ** 0.5)
        )
        assert 0 < made.errors.relative(layer, "experts") < most
    assert made.errors.relative(None, "head") is None
    bits = 8 * made.integer_bytes / made.integer_weights
    assert bits == pytest.approx(8.2 if recipe.bits == 8 else 5.0, abs=0.5)
    total = sum(t.nbytes for t in tensors_of(tmp_path / "made").values())
    assert made.bytes == total


def test_small_files_come_along_and_the_config_says_what_the_weights_are(source, tmp_path):
    run(source, tmp_path / "made")
    names = {p.name for p in (tmp_path / "made").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not any(n.endswith((".bin", PARTIAL, ".tmp")) for n in names)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert said["format"] == "pack-quantized"
    assert said["ignore"] == ["lm_head", "model.layers.0.block_sparse_moe.gate"]
    weights = said["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 32, False)


class _Killed(BaseException):
    """Nothing of ours catches it."""


def test_ended_at_any_point_the_next_run_makes_the_same(source, tmp_path):
    points: Counter[str] = Counter()
    run(source, tmp_path / "whole", faults=lambda point: points.update([point]))
    wanted = contents(tmp_path / "whole")
    assert sum(name.endswith(".safetensors") for name in wanted) > 3
    for point, times in points.items():
        for at in sorted({1, times // 2, times} - {0}):
            folder = tmp_path / f"{point}-{at}"
            left = [at]

            def faults(here: str, point: str = point, left: list[int] = left) -> None:
                left[0] -= here == point
                if here == point and not left[0]:
                    raise _Killed

            with pytest.raises(_Killed):
                run(source, folder, faults=faults)
            done: list[int] = []
            job = Quantizing(source, folder, Recipe("int4", symmetric=False), shard_bytes=SHARD)
            job.run(time.perf_counter, done.append)
            assert contents(folder) == wanted
            assert sum(done) == job.source_bytes


def test_finished_shards_are_not_made_again(source, tmp_path):
    def faults(point: str, seen: list[str] = []) -> None:  # noqa: B006 (a counter)
        seen.append(point)
        if seen.count("quantize.rename") == 3:
            raise _Killed

    with pytest.raises(_Killed):
        run(source, tmp_path / "made", faults=faults)
    first = tmp_path / "made" / next(iter(sorted(n for n in contents(tmp_path / "made"))))
    before = first.stat().st_ino
    tensors: list[str] = []
    run(source, tmp_path / "made", faults=tensors.append)
    assert first.stat().st_ino == before
    whole: list[str] = []
    run(source, tmp_path / "whole", faults=whole.append)
    assert 0 < tensors.count("quantize.tensor") < whole.count("quantize.tensor")
    again: list[str] = []
    assert run(source, tmp_path / "made", faults=again.append).bytes
    assert "quantize.tensor" not in again


def test_a_killed_process_is_taken_up_again(wide, tmp_path):
    folder = tmp_path / "made"
    flags = ("--weights", "int4", "--shard-size", "500KB", "--no-evaluate")
    with running("quantize", wide, "-o", folder, *flags) as process:
        while process.poll() is None and len(list(folder.glob("*.safetensors"))) < 2:
            time.sleep(0.005)
        process.kill()
    left = Quantizing(wide, folder, Recipe("int4"), shard_bytes=500_000)
    left.run(time.perf_counter)
    quantize_folder(wide, tmp_path / "whole", Recipe("int4"), shard_bytes=500_000)
    assert contents(folder) == contents(tmp_path / "whole")


class _AtOnce(ThreadPoolExecutor):
    """Works in the caller's thread: the allocator is watched there only."""

    def submit(self, fn, /, *args, **kwargs):
        done: Future[object] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def test_memory_stays_within_the_budget_and_does_not_change_the_bits(wide, tmp_path, monkeypatch):
    memory = 1_500_000
    run(wide, tmp_path / "large", shard_bytes=10**7, threads=3)
    monkeypatch.setattr("headrace.engine.quantizing.ThreadPoolExecutor", _AtOnce)
    settings = {"memory": memory, "shard_bytes": 10**7}
    peak = peak_allocated(lambda: run(wide, tmp_path / "small", **settings))
    as_read = 4  # bytes of a weight in 16 bits, in the slot and in a copy of it
    assert memory / 4 < peak <= memory * (1 - as_read / ELEMENT_BYTES)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_too_little_memory_is_refused_with_what_would_do(source, tmp_path):
    with pytest.raises(BudgetError, match="too small") as refused:
        run(source, tmp_path / "made", memory=100)
    assert refused.value.smallest_bytes < 96 * 8 * ELEMENT_BYTES * 2
    assert not (tmp_path / "made").exists()
    run(source, tmp_path / "made", memory=refused.value.smallest_bytes)


def test_a_folder_that_holds_something_else_is_refused(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(source, tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        run(source, tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="not empty"):
        run(source, source)


def test_other_flags_or_another_model_are_refused(source, tmp_path):
    run(source, tmp_path / "made")
    with pytest.raises(SignatureError, match="another quantization"):
        run(source, tmp_path / "made", Recipe("int8"))
    other = tmp_path / "other"
    build("mixtral-e5-window-tied", other, **SIZES, num_hidden_layers=1)
    with pytest.raises(SignatureError, match="another quantization"):
        run(other, tmp_path / "made")


def test_two_runs_on_one_folder_are_refused(source, tmp_path):
    def faults(point: str) -> None:
        if point == "quantize.tensor":
            run(source, tmp_path / "made")

    with pytest.raises(LockedError):
        run(source, tmp_path / "made", faults=faults)


def test_a_full_disk_is_said_beforehand(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000}))
    with pytest.raises(StorageError, match="too little space"):
        run(source, tmp_path / "made")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: Recipe("int3"), "--weights"),
        (lambda: Recipe("int8", 48), "--group"),
        (lambda: Recipe("int4", 64), "groups of 64.*--group 32"),
        (lambda: Recipe("int8", head=True), "--lm-head"),
    ],
)
def test_recipes_that_cannot_be_honoured_are_refused(recipe, message, source, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(source, tmp_path / "made", recipe())
    assert not (tmp_path / "made").exists()


def test_integers_are_not_quantized_again(source, tmp_path):
    run(source, tmp_path / "made")
    with pytest.raises(UsageError, match="integers already"):
        run(tmp_path / "made", tmp_path / "again")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    build("llama-gqa", tmp_path / "bad", torch.float32, **SIZES)
    path = tmp_path / "bad" / "model.safetensors"
    tensors = tensors_of(tmp_path / "bad")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.inf
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        run(tmp_path / "bad", tmp_path / "made")


def test_an_untied_head_becomes_integers_on_request(tmp_path):
    build("llama-gqa", tmp_path / "source", **SIZES)
    made = run(tmp_path / "source", tmp_path / "made", Recipe("int8", head=True))
    assert 0 < made.errors.relative(None, "head") < 0.01
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == []
    assert tensors_of(tmp_path / "made")["lm_head.weight"].dtype == torch.int8
