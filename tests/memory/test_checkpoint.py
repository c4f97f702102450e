from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import CheckpointError
from headrace.memory.checkpoint import INDEX, SINGLE, Checkpoint
from headrace.memory.tiers import page_cache_bytes

from .folders import contents, model_tensors, small_model, write_folder

MODEL = small_model()


@pytest.mark.parametrize("shards", [1, 3])
def test_the_index_finds_every_tensor_where_the_library_does(tmp_path: Path, shards: int) -> None:
    checkpoint = Checkpoint.open(write_folder(tmp_path, MODEL, shards, header_pad=5))
    expected = contents(tmp_path)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, entry in checkpoint.tensors.items():
        data = checkpoint.files[entry.file].read_bytes()
        assert data[entry.offset : entry.offset + entry.nbytes] == expected[name]
        assert (entry.dtype, entry.shape) == ("bf16", model_tensors(MODEL)[name])
    assert checkpoint.total_bytes == sum(map(len, expected.values()))
    assert checkpoint.file_bytes == tuple(f.stat().st_size for f in checkpoint.files)
    assert checkpoint.config == {"model_type": "mixtral"}
    assert checkpoint.generation_config == {}


def test_generation_config_is_read_when_it_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path, MODEL)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Checkpoint.open(tmp_path).generation_config == {"eos_token_id": [1, 2]}


def test_symlinked_files_are_followed_as_the_hub_cache_needs(tmp_path: Path) -> None:
    write_folder(tmp_path / "blobs", MODEL)
    snapshot = tmp_path / "snapshots" / "1f0c"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    checkpoint = Checkpoint.open(str(snapshot))
    assert len(checkpoint.tensors) == len(model_tensors(MODEL))


def test_a_folder_may_be_a_link_and_link_within_itself(tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", MODEL)
    (real / SINGLE).rename(real / "weights")
    (real / SINGLE).symlink_to("weights")
    (tmp_path / "link").symlink_to(real)
    assert len(Checkpoint.open(tmp_path / "link").tensors) == len(model_tensors(MODEL))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", SINGLE, INDEX])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model", MODEL, shards=1 if name == SINGLE else 2)
    if name == "generation_config.json":
        (folder / name).write_text("{}")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="symbolic link that leaves the folder"):
        Checkpoint.open(folder)


def test_a_cache_whose_blobs_are_a_link_is_no_way_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "outside", MODEL)
    snapshot = tmp_path / "cache" / "snapshots" / "1f0c"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").symlink_to(tmp_path / "outside")
    for file in (tmp_path / "outside").iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        Checkpoint.open(snapshot)


def remap(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A fault in the index file."""

    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return apply


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (shutil.rmtree, "expected: a folder"),
        (lambda d: (d / "config.json").unlink(), "cannot open 'config.json'"),
        (lambda d: (d / "config.json").write_text("{'a': 1}"), "config.json is not valid JSON"),
        (lambda d: (d / "generation_config.json").write_text("3"), "generation_config.json"),
        (lambda d: (d / INDEX).unlink(), "no weights .* only safetensors is read"),
        (lambda d: (d / INDEX).write_text("[]"), "a JSON object"),
        (remap(lambda i: i.pop("weight_map")), "weight_map"),
        (remap(lambda i: i.update(weight_map=[])), "weight_map"),
        (remap(lambda i: i.update(weight_map={})), "weight_map"),
        (remap(lambda i: i["weight_map"].update(embed=None)), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed=["x"])), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed="..")), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed="../x.safetensors")), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed="/etc/passwd")), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed="a\0.safetensors")), "inside the folder"),
        (remap(lambda i: i["weight_map"].update(embed="model.bin")), r"\*\.safetensors"),
        (remap(lambda i: i["weight_map"].update(embed="x.safetensors")), "shard 'x.*' is missing"),
        (
            remap(lambda i: i["weight_map"].update(ghost=next(iter(i["weight_map"].values())))),
            "'ghost' is not in the shard",
        ),
    ],
)
def test_a_faulty_folder_is_refused(
    tmp_path: Path, fault: Callable[[Path], object], message: str
) -> None:
    folder = write_folder(tmp_path / "model", MODEL, shards=2)
    fault(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_truncated_shard_is_refused_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, MODEL, shards=2)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated"):
        Checkpoint.open(tmp_path)


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.memory.checkpoint.MAX_FILES", 1)
    with pytest.raises(CheckpointError, match="too many shards"):
        Checkpoint.open(write_folder(tmp_path, MODEL, shards=2))


def test_the_content_key_survives_a_move_and_sees_other_weights(tmp_path: Path) -> None:
    first = Checkpoint.open(write_folder(tmp_path / "a", MODEL, shards=2)).content_key()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Checkpoint.open(tmp_path / "b").content_key() == first
    (tmp_path / "b" / "config.json").write_text('{"model_type": "mixtral", "rope_theta": 5}')
    assert Checkpoint.open(tmp_path / "b").content_key() != first
    other = write_folder(tmp_path / "c", MODEL, shards=2, seed=0)
    shard = max(other.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    data = shard.read_bytes()
    shard.write_bytes(data[:-20_000] + bytes(b ^ 1 for b in data[-20_000:]))
    assert Checkpoint.open(other).content_key() != first


def test_neither_index_nor_key_leave_the_weights_in_the_page_cache(tmp_path: Path) -> None:
    file = write_folder(tmp_path, small_model(ffn_width=20_000)) / SINGLE
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if page_cache_bytes(file):
        pytest.skip("this file system keeps its files in memory")
    Checkpoint.open(tmp_path).content_key()
    assert page_cache_bytes(file) == 0
