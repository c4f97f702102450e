from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from headrace.errors import StorageError
from headrace.memory import disk
from headrace.memory.disk import DiskReader, FileRange
from headrace.memory.tiers import page_cache_bytes

SIZE = 300_123


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with an odd tail, on disk and not in the page cache."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return path


def memory(nbytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, nbytes))


@pytest.mark.parametrize("direct", [None, False])
def test_ranges_land_where_they_were_told_to(file: Path, direct: bool | None) -> None:
    into = memory(1 << 19)
    with DiskReader([file], direct) as reader:
        reads = (FileRange(0, 8192, 5000, at=4096), FileRange(0, 4096, 10, at=65536))
        assert reader.read(reads, into) == reader.bytes_read == 8192 + 4096
    data = file.read_bytes()
    assert into[4096 : 4096 + 5000] == data[8192 : 8192 + 5000]
    assert into[65536 : 65536 + 10] == data[4096 : 4096 + 10]


@pytest.mark.parametrize("direct", [None, False])
def test_the_tail_of_a_file_is_read_though_it_fills_no_block(
    file: Path, direct: bool | None
) -> None:
    into = memory(1 << 19)
    with DiskReader([file], direct) as reader:
        start = SIZE // 4096 * 4096 - 8192
        assert reader.read([FileRange(0, start, SIZE - start)], into) == SIZE - start
    assert into[: SIZE - start] == file.read_bytes()[start:]


@pytest.mark.parametrize("direct", [None, False])
def test_large_reads_are_split(
    file: Path, direct: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "REQUEST_BYTES", 8192)
    into = memory(1 << 19)
    with DiskReader([file], direct) as reader:
        assert reader.read([FileRange(0, 0, SIZE)], into) == SIZE
        assert reader.requests == -(-SIZE // 8192)
    assert into[:SIZE] == file.read_bytes()


@pytest.mark.parametrize("direct", [None, False])
def test_reads_leave_nothing_in_the_page_cache(file: Path, direct: bool | None) -> None:
    if page_cache_bytes(file):
        pytest.skip("this file system keeps its files in memory")
    with DiskReader([file], direct) as reader:
        reader.read([FileRange(0, 0, SIZE)], memory(1 << 19))
    assert page_cache_bytes(file) == 0


def test_a_reader_says_how_it_reads(file: Path) -> None:
    with DiskReader([file], direct=False) as reader:
        assert (reader.mode, reader.reason) == ("buffered", "buffered reads were asked for")
    with DiskReader([file]) as reader:
        assert (reader.mode == "direct") == (reader.reason == "")


def refuse_direct_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)


def refuse_direct_read(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    import fcntl

    real, calls = os.preadv, iter(range(10**6))

    def refusing(descriptor: int, parts: object, offset: int) -> int:
        direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        if direct and next(calls) >= after:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, parts, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", refusing)


def test_a_file_system_without_o_direct_is_read_buffered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct_open(monkeypatch)
    into = memory(1 << 19)
    with DiskReader([file, file]) as reader:
        reader.read([FileRange(1, 0, SIZE)], into)
        assert reader.mode == "buffered"
        assert "refuses O_DIRECT (Invalid argument)" in reader.reason
    assert into[:SIZE] == file.read_bytes()


@pytest.mark.parametrize(("after", "reason"), [(0, "refuses direct reads"), (2, "was refused")])
def test_direct_reads_that_fail_are_repeated_buffered(
    file: Path, monkeypatch: pytest.MonkeyPatch, after: int, reason: str
) -> None:
    with DiskReader([file]) as reader:
        if reader.mode != "direct":
            pytest.skip("no direct reads here")
    refuse_direct_read(monkeypatch, after)
    into = memory(1 << 19)
    with DiskReader([file]) as reader:
        reader.read([FileRange(0, 0, 4096)], into)
        reader.read([FileRange(0, 0, SIZE)], into)
        assert reader.mode == "buffered"
        assert reason in reader.reason
    assert into[:SIZE] == file.read_bytes()


def test_a_file_system_that_caches_direct_reads_is_found_out(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([0, 4096])
    monkeypatch.setattr(disk, "page_cache_bytes", lambda *_: next(answers))
    with DiskReader([file]) as reader:
        if "refuses" in reader.reason:
            pytest.skip("no direct reads here")
        assert reader.mode == "buffered"
        assert "caches direct reads" in reader.reason


def test_direct_reads_that_were_demanded_and_refused_are_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct_open(monkeypatch)
    with pytest.raises(StorageError, match=r"direct reads are refused.*O_DIRECT"):
        DiskReader([file], direct=True)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*absent"):
        DiskReader([tmp_path / "absent"])


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("left", [0, 5000, 12288])
def test_a_file_cut_short_after_opening_is_named_with_the_offset(
    file: Path, direct: bool | None, left: int
) -> None:
    with DiskReader([file], direct) as reader:
        os.truncate(file, left)
        with pytest.raises(StorageError, match=rf"weights ends early.*a file of {left} bytes"):
            reader.read([FileRange(0, 0, SIZE)], memory(1 << 19))


def test_an_io_error_names_file_and_offset(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DiskReader([file], direct=False) as reader:

        def failing(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(StorageError, match=r"weights at offset 4096 failed.*Input/output"):
            reader.read([FileRange(0, 4096, 10)], memory(4096))


def test_a_short_read_in_the_middle_is_continued(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def stingy(descriptor: int, parts: tuple[object], offset: int) -> int:
        return real(descriptor, (memoryview(parts[0])[:12288],), offset)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", stingy)
    into = memory(1 << 19)
    with DiskReader([file]) as reader:
        reader.read([FileRange(0, 0, SIZE)], into)
    assert into[:SIZE] == file.read_bytes()


def test_threads_read_side_by_side_and_every_byte_is_counted(file: Path) -> None:
    data = file.read_bytes()
    with DiskReader([file]) as reader:
        right: list[bool] = []

        def work(offset: int) -> None:
            into = memory(8192)
            for _ in range(50):
                reader.read([FileRange(0, offset, 8192)], into)
                right.append(into == data[offset : offset + 8192])

        threads = [threading.Thread(target=work, args=(i * 8192,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(right) == 200
        assert all(right)
        assert reader.bytes_read == 200 * 8192


def test_closing_twice_is_harmless(file: Path) -> None:
    reader = DiskReader([file])
    reader.close()
    reader.close()
    with pytest.raises(StorageError):
        reader.read([FileRange(0, 0, 10)], memory(4096))


def test_a_file_left_alone_is_unchanged(file: Path) -> None:
    with DiskReader([file]) as reader:
        reader.check_unchanged()
        os.utime(file, ns=(1, file.stat().st_mtime_ns))  # being read is no change
        reader.check_unchanged()


def _truncate(path: Path) -> None:
    os.truncate(path, 4096)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(1, 1))  # as if the clock had moved on


def _replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_truncate, "truncated from 300123 to 4096 bytes"),
        (_overwrite, "was written to"),
        (_replace, "replaced by another file"),
        (Path.unlink, "was removed"),
    ],
)
def test_a_file_that_changes_while_it_is_open_is_named(file: Path, change, said: str) -> None:
    with DiskReader([file]) as reader:
        change(file)
        with pytest.raises(StorageError, match=said) as caught:
            reader.check_unchanged()
        assert str(file) in str(caught.value)


def test_a_read_error_names_file_and_offset(file: Path) -> None:
    def broken(point: str) -> None:
        if point == "page.read":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with (
        DiskReader([file], faults=broken) as reader,
        pytest.raises(StorageError, match=r"offset 4096.*Input/output error"),
    ):
        reader.read([FileRange(0, 4096, 10)], memory(1 << 19))


SMALL = (FileRange(0, 8192, 5000, at=4096), FileRange(0, 294_912, SIZE - 294_912, at=65536))


def native_together():
    from headrace.kernels.native import read_together

    found = read_together()
    if found is None:
        pytest.skip("built without native kernels")
    return found


@pytest.mark.parametrize("in_flight", [0, 1, 2, 8])
def test_small_reads_land_as_others_do(file: Path, in_flight: int) -> None:
    one, other = memory(1 << 19), memory(1 << 19)
    with DiskReader([file], together=native_together()) as reader:
        if reader.mode != "direct":
            pytest.skip("no direct reads here")
        got = reader.read_small(SMALL, one, in_flight)
        assert got == reader.bytes_read == reader.read(SMALL, other)
        assert reader.requests == 4
    assert bytes(one) == bytes(other)


def test_small_reads_are_left_to_others_where_they_cannot_be(file: Path) -> None:
    into = memory(1 << 19)

    def failing(requests: list[tuple[int, int, int, int, int]], in_flight: int) -> int:
        return -1

    with DiskReader([file]) as plain, DiskReader([file], together=failing) as broken:
        assert plain.read_small(SMALL, into, 8) is None
        assert broken.read_small(SMALL, into, 8) is None
        assert broken.read_small((), into, 8) is None
        assert broken.bytes_read == 0
    with DiskReader([file], together=native_together()) as reader:
        assert reader.read_small(SMALL, memory(4096), 8) is None  # too small a place
        os.truncate(file, 10_000)
        assert reader.read_small(SMALL, into, 8) is None
        with pytest.raises(StorageError):
            reader.read(SMALL, into)
    with DiskReader([file], direct=False, together=native_together()) as buffered:
        assert buffered.read_small(SMALL[:1], into, 8) is None
