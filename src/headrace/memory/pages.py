"""The page table: which bytes of which files make up a page, and where each tensor lands.

A page is read as it lies on disk: tensors that touch are one range, ranges are widened to
disk blocks, and a tensor is used at the offset at which it arrived. Nothing is copied, except
from files whose tensors do not lie at multiples of their element size (see ``Shift``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headrace.errors import CheckpointError, HeadraceError
from headrace.memory.checkpoint import Checkpoint, TensorEntry
from headrace.memory.disk import ALIGN, DiskReader, FileRange, align_up
from headrace.memory.rows import RowReader
from headrace.specs.forms import FLOATS, PART_NAMES, STORED_BYTES, Form, Part
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Slice

TensorName = Callable[[str, int | None, int | None], str]
"""``tensor_name(logical, layer, expert)``: the name in the checkpoint."""

_TENSOR_ALIGN = 64


class Place(NamedTuple):
    """Where a page's tensor (or its rows) lies in the slot: byte offset, format and shape as
    stored. Integers know their ``form`` and how many ``columns`` they stand for; their scales and
    zero points have places of their own (see ``PART_NAMES``)."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    form: Form | None = None
    columns: int = 0


class Shift(NamedTuple):
    """Bytes ``at + by .. at + by + nbytes`` of a slot move down to ``at``.

    Only for files with an odd header length, or odd bytes between tensors: their elements
    would straddle addresses that no tensor library accepts.
    """

    at: int
    by: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PagePlan:
    """How one page is read: ranges with their place in the slot, and what lands where."""

    ranges: tuple[FileRange, ...]
    shifts: tuple[Shift, ...]
    places: Mapping[str, Place]
    slot_bytes: int
    read_bytes: int
    needed_bytes: int


class PageTable:
    """Plans for all ``pages`` of one checkpoint, and the reads that follow them.

    Every tensor of every page is checked against ``model``: present, of the expected shape,
    in a format that runs. Raises CheckpointError. Without ``reader`` it opens its own, which
    ``close`` closes. Reads may come from several threads at once.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        checkpoint: Checkpoint,
        tensor_name: TensorName,
        model: ModelSpec,
        reader: DiskReader | None = None,
    ) -> None:
        self.pages = tuple(pages)
        self.model = model
        self._checkpoint = checkpoint
        self._tensor_name = tensor_name
        self._shapes = model.layer_tensors() | model.expert_tensors() | model.global_tensors()
        self._plans = {page.id: self._plan(page) for page in self.pages}
        self._owns_reader = reader is None
        self.reader = DiskReader(checkpoint.files) if reader is None else reader
        self._rows = RowReader(self.reader)

    def read(self, page_id: int, into: memoryview) -> int:
        """Read a page into a slot of at least ``slot_bytes``; returns the bytes read.

        ``into`` starts at a multiple of 4096 for direct reads. Raises StorageError.
        """
        plan = self._plans[page_id]
        got = self.reader.read(plan.ranges, into)
        for at, by, nbytes in plan.shifts:
            into[at : at + nbytes] = into[at + by : at + by + nbytes]
        return got

    def geometry(self, page_id: int) -> Mapping[str, Place]:
        """Name -> place in the slot, of every part. Offsets are multiples of the element size."""
        return self._plans[page_id].places

    def plan(self, page_id: int) -> PagePlan:
        """How a page is read."""
        return self._plans[page_id]

    def slot_bytes(self, page_id: int) -> int:
        """Memory a page needs, a multiple of 4096."""
        return self._plans[page_id].slot_bytes

    def max_slot_bytes(self, page_ids: Iterable[int]) -> int:
        """Memory that any of the pages fits in; 0 for none."""
        return max((self._plans[i].slot_bytes for i in page_ids), default=0)

    def read_bytes(self, page_id: int) -> int:
        """Bytes that reading a page moves: its tensors widened to disk blocks."""
        return self._plans[page_id].read_bytes

    def needed_bytes(self, page_id: int) -> int:
        """Bytes of a page's tensors."""
        return self._plans[page_id].needed_bytes

    def row_bytes(self, tensor: str = "embed") -> int:
        """Bytes of one row of a global table."""
        return self._table(tensor).nbytes // self._shapes[tensor][0]

    def row_dtype(self, tensor: str = "embed") -> str:
        """Stored format of a global table."""
        return self._table(tensor).dtype

    def read_rows(self, rows: Sequence[int], into: memoryview, tensor: str = "embed") -> int:
        """Read rows of a global table one after the other into ``into``; returns bytes read.

        Row i lands at ``i * row_bytes``. A repeated row is read once. Takes
        ``rows.BOUNCE_BYTES`` beside ``into``. Raises StorageError, or HeadraceError when there
        is no such row.
        """
        entry, size = self._table(tensor), self.row_bytes(tensor)
        if len(rows) * size > len(into):
            raise HeadraceError("rows buffer", expected=len(rows) * size, got=len(into))
        ranges = {row: _row_range(entry, row) for row in sorted(set(rows))}
        return self._rows.read(rows, ranges, size, into)

    def close(self) -> None:
        """Close the reader if it is the table's own. Idempotent."""
        self._rows.close()
        if self._owns_reader:
            self.reader.close()

    def __enter__(self) -> PageTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plan(self, page: Page) -> PagePlan:
        pieces = sorted(
            (part for piece in page.slices for part in self._pieces(page, piece)),
            key=lambda p: (p.file, p.offset),
        )
        ranges: list[FileRange] = []
        shifts: list[Shift] = []
        places: dict[str, Place] = {}
        at = 0
        for run in _runs(pieces):
            start, end = run[0].offset, run[-1].offset + run[-1].nbytes
            lead = start % ALIGN
            shift = (
                lead % _TENSOR_ALIGN if any(lead % STORED_BYTES[p.place.dtype] for p in run) else 0
            )
            ranges.append(FileRange(run[0].file, start - lead, lead + end - start, at))
            if shift:
                shifts.append(Shift(at, shift, lead - shift + end - start))
            for p in run:
                offset = at + lead - shift + p.offset - start
                places[p.name] = p.place._replace(offset=offset)
            at += ranges[-1].span
        sizes = self._checkpoint.file_bytes
        return PagePlan(
            ranges=tuple(ranges),
            shifts=tuple(shifts),
            places=dict(sorted(places.items())),
            slot_bytes=at,
            read_bytes=sum(min(r.span, sizes[r.file] - r.offset) for r in ranges),
            needed_bytes=sum(p.nbytes for p in pieces),
        )

    def _pieces(self, page: Page, piece: Slice) -> Iterator[_Piece]:
        """The parts of a slice: one, or values, scales and zero points."""
        shape = self._shapes[piece.tensor]
        for suffix, part in piece.form.parts(shape).items():
            entry = self._entry(piece.tensor, page.layer, page.expert, suffix, part)
            start, stop = part.rows(piece.start, piece.stop)
            row_bytes = entry.nbytes // entry.shape[0]
            nbytes = (stop - start) * row_bytes
            place = Place(0, entry.dtype, (stop - start, *entry.shape[1:]), nbytes)
            if piece.form.integer and suffix not in PART_NAMES:
                place = place._replace(form=piece.form, columns=piece.columns)
            name = piece.tensor + PART_NAMES.get(suffix, "")
            yield _Piece(name, entry.file, entry.offset + start * row_bytes, nbytes, place)

    def _table(self, tensor: str) -> TensorEntry:
        return self._entry(tensor, None, None, "", Part("", self._shapes[tensor]))

    def _entry(
        self, logical: str, layer: int | None, expert: int | None, suffix: str, part: Part
    ) -> TensorEntry:
        """The stored part, of the shape and format that ``part`` says; among floats any will do."""
        name = self._tensor_name(logical, layer, expert) + suffix
        entry = self._checkpoint.tensors.get(name)
        if entry is None:
            raise CheckpointError(
                f"tensor {name} ({logical}) is missing from {self._checkpoint.folder}",
                hint="does config.json belong to these weights?",
            )
        if entry.shape != part.shape:
            raise CheckpointError(
                f"shape of tensor {name}",
                expected=f"{list(part.shape)} from config.json",
                got=list(entry.shape),
            )
        formats = (part.dtype,) if part.dtype in ("i8", "i32") else tuple(FLOATS)
        if entry.dtype not in formats:
            raise CheckpointError(
                f"format of tensor {name}",
                expected=" or ".join(formats),
                got=entry.dtype,
                hint="use the checkpoint in its unquantised form",
            )
        return entry


class _Piece(NamedTuple):
    name: str
    file: int
    offset: int
    nbytes: int
    place: Place


def _row_range(table: TensorEntry, row: int) -> tuple[FileRange, int]:
    count = table.shape[0]
    if not 0 <= row < count:
        raise HeadraceError("no such row", expected=f"0 .. {count - 1}", got=row)
    size = table.nbytes // count
    start = table.offset + row * size
    lead = start % ALIGN
    return FileRange(table.file, start - lead, lead + size), lead


def _runs(pieces: Sequence[_Piece]) -> Iterable[list[_Piece]]:
    """Pieces that share a file and whose disk blocks touch: one range each.

    A piece joins only where the distance to the first keeps its elements aligned.
    """
    run: list[_Piece] = []
    for piece in pieces:
        if run:
            first, end = run[0], run[-1].offset + run[-1].nbytes
            touches = piece.file == first.file and piece.offset <= align_up(end)
            if not touches or (piece.offset - first.offset) % STORED_BYTES[piece.place.dtype]:
                yield run
                run = []
        run.append(piece)
    if run:
        yield run
