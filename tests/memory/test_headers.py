from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CheckpointError
from headrace.memory.headers import parse_object, read_header, read_json

from .folders import framed, safetensors_bytes

GOOD = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


def header_of(tmp_path: Path, content: bytes) -> object:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return read_header(path)


def entry(**changes: object) -> bytes:
    return framed(json.dumps({"a": GOOD | changes}).encode(), bytes(12))


def test_a_header_gives_offsets_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": ("f32", (2,), bytes(8)), "b": ("bf16", (), b"xy"), "c": ("i8", (0, 9), b"")}
    path.write_bytes(safetensors_bytes(tensors, header_pad=3))
    header = read_header(path)
    start = header.file_bytes - 10
    assert header.tensors["b"] == ("BF16", (), start + 8, 2)
    assert header.tensors["c"] == ("I8", (0, 9), start + 10, 0)
    assert path.read_bytes()[header.tensors["b"].offset :] == b"xy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (b"\xff" * 8, "too long"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "too long"),
        ((100).to_bytes(8, "little") + b"{}", "truncated inside its header"),
        (framed(b""), "not valid JSON"),
        (framed(b"\xff\xfe{}"), "not valid JSON"),
        (framed(b"{"), "not valid JSON"),
        (framed(b"[]"), "a JSON object"),
        (framed(b"[" * 200_000), "not valid JSON"),
        (framed(b'{"a":' * 100_000), "not valid JSON"),
        (framed(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
        (framed(b'{"a": 1, "a": 2}'), "stands twice"),
        (framed(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "stands twice"),
        (framed(b'{"__metadata__": 3}'), "__metadata__"),
        (framed(b'{"__metadata__": {"a": 3}}'), "__metadata__"),
        (framed(b'{"a": 3}'), "dtype, shape and data_offsets"),
        (framed(b'{"a": {"dtype": "F32"}}'), "dtype, shape and data_offsets"),
        (entry(extra=1), "dtype, shape and data_offsets"),
        (entry(dtype="FLOAT"), "dtype of tensor"),
        (entry(dtype=["BF16"]), "dtype of tensor"),
        (entry(shape=6), "shape of tensor"),
        (entry(shape=[-2, -3]), "shape of tensor"),
        (entry(shape=[2.0, 3]), "shape of tensor"),
        (entry(shape=[True, 6]), "shape of tensor"),
        (entry(shape=[1] * 9), "shape of tensor"),
        (entry(shape=[2**62, 2**62]), "size of tensor"),
        (entry(shape=[2, 4]), "size of tensor"),
        (entry(shape=[10**400]), "shape of tensor"),
        (entry(shape=[2**62] * 8), "size of tensor"),
        (entry(shape=[0], data_offsets=[10**4299 * 9, 10**4299 * 9]), "data_offsets of tensor"),
        (entry(data_offsets=[0]), "data_offsets of tensor"),
        (entry(data_offsets=[12, 0]), "data_offsets of tensor"),
        (entry(data_offsets=[-12, 0]), "data_offsets of tensor"),
        (entry(data_offsets=[0, 12.0]), "data_offsets of tensor"),
        (entry(data_offsets=[4, 16]), "leaves a hole"),
        (entry(shape=[3, 3], data_offsets=[0, 18]), "is truncated"),
        (entry(shape=[2, 2], data_offsets=[0, 8]), "belong to no tensor"),
        (framed(json.dumps({"a": GOOD, "b": GOOD}).encode(), bytes(12)), "overlaps"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        header_of(tmp_path, content)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_still_consistent(data: st.DataObject) -> None:
    tensors = {"a": ("f32", (2, 2), bytes(16)), "b": ("bf16", (3,), bytes(6))}
    content = bytearray(safetensors_bytes(tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    descriptor = os.memfd_create("damaged")
    try:
        os.write(descriptor, content)
        try:
            header = read_header(Path(f"/proc/self/fd/{descriptor}"))
        except CheckpointError:
            return
        assert sum(t.nbytes for t in header.tensors.values()) < len(content)
        assert all(t.offset + t.nbytes <= len(content) for t in header.tensors.values())
    finally:
        os.close(descriptor)


def test_a_pipe_or_folder_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing", "nul\0byte"):
        with pytest.raises(CheckpointError):
            read_json(tmp_path / name)


def test_a_json_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="too large"):
        read_json(tmp_path / "config.json")


def test_json_objects_are_returned_as_they_stand() -> None:
    assert parse_object(b'{"a": [1, null], "b": {"c": 0.5}}', "x") == {
        "a": [1, None],
        "b": {"c": 0.5},
    }
