from __future__ import annotations

import mmap
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CheckpointError, HeadraceError, StorageError
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.disk import DiskReader
from headrace.memory.pages import PageTable
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import Role, page_layout

from .folders import (
    contents,
    model_tensors,
    safetensors_bytes,
    small_model,
    tensor_name,
    write_folder,
)

ALL_SWITCHES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": True}


def table_of(
    folder: Path, model: ModelSpec, cut_bytes: int = 10**9, direct: bool | None = None
) -> PageTable:
    checkpoint = Checkpoint.open(folder)
    reader = DiskReader(checkpoint.files, direct)
    return PageTable(page_layout(model, cut_bytes), checkpoint, tensor_name, model, reader)


def slot(nbytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, nbytes))


def read_tensors(table: PageTable) -> Iterator[tuple[str, int, bytes]]:
    """(checkpoint name, first row, bytes) of every slice of every page, read into one slot."""
    into = slot(table.max_slot_bytes(page.id for page in table.pages))
    for page in table.pages:
        into[:] = b"\xff" * len(into)
        assert table.read(page.id, into) == table.read_bytes(page.id)
        for piece in page.slices:
            place = table.geometry(page.id)[piece.tensor]
            assert place.shape == piece.shape
            assert place.offset % ITEM_BYTES[place.dtype] == 0
            assert place.offset + place.nbytes <= table.slot_bytes(page.id)
            name = tensor_name(piece.tensor, page.layer, page.expert)
            yield name, piece.start, bytes(into[place.offset : place.offset + place.nbytes])


@settings(max_examples=40, deadline=None)
@given(
    shards=st.integers(1, 3),
    header_pad=st.integers(0, 9),
    seed=st.integers(0, 99),
    cut_bytes=st.sampled_from([100, 1000, 5000, 10**9]),
    item=st.sampled_from(["f32", "bf16", "f16"]),
    router_item=st.sampled_from(["f32", "bf16"]),
    tied=st.booleans(),
    experts=st.sampled_from([1, 2, 5]),
    direct=st.sampled_from([None, False]),
)
def test_pages_hold_the_bytes_that_the_safetensors_library_reads(
    shards: int,
    header_pad: int,
    seed: int,
    cut_bytes: int,
    item: str,
    router_item: str,
    tied: bool,
    experts: int,
    direct: bool | None,
) -> None:
    model = small_model(
        tied_embeddings=tied, experts=experts, weight_dtype=item, hidden=23, **ALL_SWITCHES
    )
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(
            Path(name), model, shards, header_pad, seed, dtypes={"L1.router": router_item}
        )
        expected = contents(folder)
        rows: dict[str, int] = dict.fromkeys(expected, 0)
        with table_of(folder, model, cut_bytes, direct) as table:
            for tensor, start, data in read_tensors(table):
                whole = expected[tensor]
                row_bytes = len(whole) // model_tensors(model)[tensor][0]
                assert data == whole[start * row_bytes : start * row_bytes + len(data)]
                rows[tensor] += len(data)
        assert rows == {tensor: len(whole) for tensor, whole in expected.items()}


def test_needed_bytes_are_the_tensors_and_read_bytes_add_only_disk_blocks(tmp_path: Path) -> None:
    model = small_model(hidden=512, ffn_width=512)
    with table_of(write_folder(tmp_path, model), model) as table:
        for page in table.pages:
            ranges = len(table.plan(page.id).ranges)
            assert table.needed_bytes(page.id) == page.bytes
            assert page.bytes <= table.read_bytes(page.id) <= table.slot_bytes(page.id)
            assert table.slot_bytes(page.id) <= page.bytes + 2 * 4096 * ranges


def test_adjacent_tensors_are_one_read(tmp_path: Path) -> None:
    model = small_model(layers=1, experts=1)
    names = model_tensors(model)
    (tmp_path / "config.json").write_text("{}")
    data = {n: ("bf16", s, bytes(2 * s[0] * (s[1] if s[1:] else 1))) for n, s in names.items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(data))
    with table_of(tmp_path, model) as table:
        expert = next(p for p in table.pages if p.role == Role.EXPERT)
        assert len(table.plan(expert.id).ranges) == 1


@pytest.mark.parametrize("header_pad", [0, 1])
def test_rows_are_read_by_id_in_any_order_and_repeated(tmp_path: Path, header_pad: int) -> None:
    model = small_model()
    folder = write_folder(tmp_path, model, header_pad=header_pad)
    embed = contents(folder)["embed"]
    with table_of(folder, model) as table:
        size = table.row_bytes()
        ids = [95, 0, 7, 7, 3, 95, 94]
        into = slot(4096)
        assert table.row_dtype() == "bf16"
        assert 0 < table.read_rows(ids, into) <= 8192
        assert bytes(into[: len(ids) * size]) == b"".join(
            embed[i * size : (i + 1) * size] for i in ids
        )
        assert table.read_rows([], into) == 0


def test_rows_of_a_large_table_come_in_several_batches(tmp_path: Path) -> None:
    model = small_model(vocab=3000, hidden=1000)
    folder = write_folder(tmp_path, model)
    embed = contents(folder)["embed"]
    ids = list(range(0, 3000, 3))
    into = slot(len(ids) * 2000)
    with table_of(folder, model) as table:
        table.read_rows(ids, into)
    assert bytes(into) == b"".join(embed[i * 2000 : (i + 1) * 2000] for i in ids)


@pytest.mark.parametrize("row", [-1, 96])
def test_a_row_outside_the_table_is_refused(tmp_path: Path, row: int) -> None:
    model = small_model()
    with (
        table_of(write_folder(tmp_path, model), model) as table,
        pytest.raises(HeadraceError, match="no such row"),
    ):
        table.read_rows([row], slot(4096))


def test_memory_that_is_too_small_is_refused(tmp_path: Path) -> None:
    model = small_model()
    with table_of(write_folder(tmp_path, model), model) as table:
        with pytest.raises(StorageError, match="slot too small"):
            table.read(0, slot(1))
        with pytest.raises(HeadraceError, match="rows buffer"):
            table.read_rows([1, 2], slot(1))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small_model(layers=1))
    with pytest.raises(CheckpointError, match=r"tensor L1\.\w+ .* is missing"):
        table_of(folder, small_model(layers=2))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small_model(ffn_width=40))
    with pytest.raises(CheckpointError, match=r"shape of tensor L0\.E0\.gate"):
        table_of(folder, small_model(ffn_width=41))


def test_a_format_that_does_not_run_is_refused(tmp_path: Path) -> None:
    model = small_model()
    file = write_folder(tmp_path, model) / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" '))
    with pytest.raises(CheckpointError, match=r"format of tensor.*bf16.*got: i16"):
        table_of(tmp_path, model)


def test_a_table_closes_only_the_reader_it_opened(tmp_path: Path) -> None:
    model = small_model()
    checkpoint = Checkpoint.open(write_folder(tmp_path, model))
    pages = page_layout(model)
    with DiskReader(checkpoint.files) as reader:
        PageTable(pages, checkpoint, tensor_name, model, reader).close()
        PageTable(pages, checkpoint, tensor_name, model, reader).read(0, slot(1 << 16))
    own = PageTable(pages, checkpoint, tensor_name, model)
    own.close()
    with pytest.raises(StorageError):
        own.read(0, slot(1 << 16))


def test_truncation_after_opening_is_a_storage_error(tmp_path: Path) -> None:
    model = small_model(hidden=256)
    file = write_folder(tmp_path, model) / "model.safetensors"
    with table_of(tmp_path, model) as table:
        with file.open("r+b") as stream:
            stream.truncate(100)
        with pytest.raises(StorageError, match="ends early"):
            list(read_tensors(table))


def test_a_read_costs_little_beyond_the_disk(tmp_path: Path) -> None:
    model = small_model(layers=1, experts=1)
    with table_of(write_folder(tmp_path, model), model) as table:
        plans = len(table.plan(1).ranges)
        into = slot(table.slot_bytes(1))
        table.reader._request = lambda file, offset, part: len(part)  # type: ignore[method-assign]
        best = min(_seconds(lambda: table.read(1, into)) for _ in range(50))
    assert best < 500e-6 * max(1, plans / 4)  # about 20 us, on an idle machine


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began
