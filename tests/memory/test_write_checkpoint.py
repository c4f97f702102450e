from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CheckpointError, StorageError
from headrace.memory.checkpoint import INDEX, SINGLE, Checkpoint
from headrace.memory.tiers import page_cache_bytes
from headrace.memory.write_checkpoint import HEADER_ROOM, CheckpointWriter
from headrace.memory.write_shard import ShardWriter

from .folders import contents

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 40), "d": (1,), "e": (0, 4)}
BYTES = {n: os.urandom(2 * s[0] * (s[1] if s[1:] else 1)) for n, s in SHAPES.items()}


def write(folder: Path, shard_bytes: int) -> None:
    with CheckpointWriter(folder, shard_bytes) as writer:
        for name, shape in SHAPES.items():
            writer.add(name, "bf16", shape, BYTES[name])
    (folder / "config.json").write_text("{}")


def test_a_disk_that_takes_a_part_at_a_time_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:1000], at))
    write(tmp_path / "m", 400)
    with closing(ShardWriter(tmp_path / "one.safetensors", {"a": ("i8", (3000,))})) as writer:
        writer.write("a", 0, bytes(range(250)) * 12)
        writer.publish()
    monkeypatch.undo()
    assert contents(tmp_path / "m") == BYTES
    assert (tmp_path / "one.safetensors").read_bytes().endswith(bytes(range(250)) * 12)


@settings(max_examples=10, deadline=None)
@given(shard_bytes=st.integers(1, 400))
def test_what_was_written_is_read_by_the_library_and_by_us(
    tmp_path_factory: pytest.TempPathFactory, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    write(folder, shard_bytes)
    assert contents(folder) == BYTES
    checkpoint = Checkpoint.open(folder)
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == SHAPES
    assert all(t.offset >= HEADER_ROOM for t in checkpoint.tensors.values())
    assert not list(folder.glob("*.partial"))


def test_one_shard_is_a_single_file_and_several_have_an_index(tmp_path: Path) -> None:
    write(tmp_path / "one", 10**6)
    assert (tmp_path / "one" / SINGLE).exists()
    assert not (tmp_path / "one" / INDEX).exists()
    write(tmp_path / "many", 100)
    names = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(map(len, BYTES.values()))


def test_arrays_and_pieces_are_taken_as_data(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    with CheckpointWriter(tmp_path) as writer:
        writer.add("array", "f32", (2, 3), values)
        writer.add("pieces", "f32", (2, 3), (row for row in values))
    found = contents(tmp_path)
    assert found["array"] == found["pieces"] == values.tobytes()


def test_many_names_open_new_shards_when_a_header_is_full(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path) as writer:
        for i in range(600):
            writer.add(f"{'x' * 100}.{i}", "f16", (1,), b"ab")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert len(contents(tmp_path)) == 600


def write_pairs(folder: Path, *pairs: tuple[str, object]) -> None:
    with CheckpointWriter(folder) as writer:
        for name, data in pairs:
            writer.add(name, "f16", (2,), data)


@pytest.mark.parametrize("data", [b"", b"123", b"12345", [b"12", b"345"], [b"1"]])
def test_data_of_another_length_is_refused_and_nothing_remains(
    tmp_path: Path, data: object
) -> None:
    with pytest.raises(CheckpointError, match="data of tensor x"):
        write_pairs(tmp_path, ("ok", b"abcd"), ("x", data))
    assert list(tmp_path.iterdir()) == []


def test_a_name_twice_or_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be added"):
        write_pairs(tmp_path, ("x", b"abcd"), ("x", b"abcd"))
    with pytest.raises(CheckpointError, match="too long"):
        write_pairs(tmp_path, ("x" * HEADER_ROOM, b"abcd"))


def test_existing_weights_are_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path, 10**6)
    with pytest.raises(CheckpointError, match="holds weights already"):
        CheckpointWriter(tmp_path)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
def test_a_failing_disk_is_a_storage_error_and_nothing_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match="No space left"):
            write_pairs(tmp_path, ("x", b"abcd"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["json.dump", "headrace.memory.write_checkpoint._sync_folder"])
def test_a_disk_that_is_full_at_the_very_end_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(StorageError, match="No space left"):
            write(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_written_shards_do_not_stay_in_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.memory.write_checkpoint._SYNC_BYTES", 1 << 20)
    with CheckpointWriter(tmp_path) as writer:
        writer.add("x", "f16", (1 << 20,), (bytes(1 << 18) for _ in range(8)))
    cached = page_cache_bytes(tmp_path / SINGLE)
    if cached == (tmp_path / SINGLE).stat().st_size:
        pytest.skip("this file system keeps its files in memory")
    assert cached == 0
