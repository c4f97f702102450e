from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from headrace.errors import StorageError
from headrace.memory.disk import DiskReader
from headrace.memory.disk_rate import measure_rate


def ticking() -> object:
    """A clock that gains a quarter of a second each time it is read."""
    ticks = itertools.count()
    return lambda: next(ticks) * 0.25


@pytest.mark.parametrize("depth", [1, 3])
def test_the_rate_is_bytes_over_seconds(tmp_path: Path, depth: int) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(100_000))
    with DiskReader([tmp_path / "a", tmp_path / "b"]) as reader:
        rate = measure_rate(reader, 150_000, depth, ticking(), request_bytes=32768)  # type: ignore[arg-type]
        assert rate.bytes == reader.bytes_read
        assert 150_000 <= rate.bytes < 150_000 + 32768
        assert (rate.seconds, rate.depth) == (0.25, depth)
        assert rate.bytes_per_second == rate.bytes * 4


def test_more_than_there_is_is_read_again_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(50_000))
    with DiskReader([tmp_path / "a"]) as reader:
        rate = measure_rate(reader, 60_000, 2, ticking(), 8192, start=40_000)  # type: ignore[arg-type]
    assert rate.bytes >= 60_000


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(50_000))
    reader = DiskReader([tmp_path / "a"])
    reader.close()
    with pytest.raises(StorageError):
        measure_rate(reader, 60_000, 2, ticking())  # type: ignore[arg-type]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with DiskReader([tmp_path / "a"]) as reader, pytest.raises(StorageError, match="nothing"):
        measure_rate(reader, 10, 1, ticking())  # type: ignore[arg-type]
