"""Turns a checkpoint into one of integers: tensor by tensor, within a budget, resumable.

Finished shards are listed in ``STATE`` beside them, a line each, durable before it counts; what
was under way when a run ended is done again. config.json comes last: a folder without it is no
checkpoint to anybody.
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.engine.durable import DurableLog, sync_folder, write_durably
from headrace.engine.hub import FILES
from headrace.engine.recipe import Item, Recipe, form_of, ignored, items_of, split
from headrace.errors import BudgetError, CheckpointError, SignatureError, StorageError, UsageError
from headrace.kernels.quantized import QuantizedWeight, quantize
from headrace.memory.checkpoint import INDEX, Checkpoint
from headrace.memory.disk import ALIGN, DiskReader, FileRange, align_up
from headrace.memory.kvcache import DTYPES
from headrace.memory.write_shard import PARTIAL, ShardWriter
from headrace.models.compressed import quantization_config
from headrace.models.load import checkpoint_spec
from headrace.specs.faults import Faults, no_faults
from headrace.specs.forms import Form
from headrace.specs.units import format_bytes

STATE = "quantize.headrace.jsonl"
"""What is done, in the output folder."""

SHARD_BYTES = 256_000_000
"""Bytes of a shard: what an interrupted run does again, at most."""

BLOCK_ELEMENTS = 1 << 18
"""Weights that are rounded at a time, at most."""

ELEMENT_BYTES = 56
"""Memory taken for each of them: as read, in fp32, tried, kept, packed."""

_LAYOUT_VERSION = "0.20.0"  # of compressed-tensors, whose names and fields are written


@dataclass
class Errors:
    """Squared error and squared weights, summed: per layer (None: outside) and role."""

    sums: dict[tuple[int | None, str], tuple[float, float]] = field(
        default_factory=lambda: defaultdict(lambda: (0.0, 0.0))
    )

    def add(self, layer: int | None, role: str, error: float, whole: float) -> None:
        """Count more weights; none, where nothing was rounded."""
        if not whole:
            return
        before = self.sums[layer, role]
        self.sums[layer, role] = before[0] + error, before[1] + whole

    def relative(self, layer: int | None, role: str | None = None) -> float | None:
        """Root of the squared error over the root of the squared weights; None for no weights."""
        mine = [s for (at, r), s in self.sums.items() if at == layer and role in (None, r)]
        error, whole = sum(s[0] for s in mine), sum(s[1] for s in mine)
        return math.sqrt(error / whole) if whole else None

    @property
    def total(self) -> float:
        """The same over all weights that became integers."""
        error = sum(s[0] for s in self.sums.values())
        whole = sum(s[1] for s in self.sums.values())
        return math.sqrt(error / whole) if whole else 0.0


@dataclass(frozen=True)
class Quantized:
    """What was made. Bytes are those of all tensors; ``integer_bytes`` those of the matrices that
    became integers, scales included, and ``integer_weights`` their number. ``seconds`` is the work
    of all runs that took part."""

    folder: Path
    form: Form
    errors: Errors
    source_bytes: int
    bytes: int
    integer_weights: int
    integer_bytes: int
    seconds: float


Progress = Callable[[int], object]
"""Called with bytes of the source that are done now, those of earlier runs first."""


class Quantizing:
    """One job: ``source`` to ``folder`` by ``recipe``. Refuses, before it touches anything, what
    cannot work: UsageError (recipe, a folder that holds something else), BudgetError,
    StorageError (disk too small), SignatureError (the folder is another job's)."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        recipe: Recipe,
        *,
        memory: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        threads: int = 1,
        faults: Faults = no_faults,
    ) -> None:
        self.checkpoint = Checkpoint.open(source)
        self.model = checkpoint_spec(self.checkpoint)
        self.folder = folder
        self.recipe = recipe
        self.form = form_of(recipe, self.model)
        self.shards = split(
            items_of(self.checkpoint, self.model, self.form, recipe.head), shard_bytes
        )
        self._threads, self._block = _blocks(self.shards, memory, threads)
        self._faults = faults
        self._check_folder()

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's tensors: what ``Progress`` counts up to."""
        return self.checkpoint.total_bytes

    def run(self, clock: Callable[[], float], progress: Progress = lambda count: None) -> Quantized:
        """Do what is not done yet. Ended early, however it ends, the next run goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with closing(DurableLog(self.folder / STATE, self._faults)) as log:
            lines = self._resume(log)
            progress(sum(_source_bytes(self.shards[number]) for number in lines))
            self._check_space(lines)
            with closing(DiskReader(self.checkpoint.files)) as reader, self._workers() as pool:
                for number, items in enumerate(self.shards):
                    if number not in lines:
                        began = clock()
                        sums = self._write(number, items, reader, pool, progress)
                        lines[number] = {"shard": number, "sums": sums, "seconds": clock() - began}
                        _append(log, lines[number])
            self._complete()
        return self._result(lines)

    # -- the folder ----------------------------------------------------------------------

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError("the output is not a folder", got=str(self.folder))
        there = {p.name for p in self.folder.iterdir()} if self.folder.exists() else set()
        if there and STATE not in there:
            raise UsageError(
                "the folder is not empty, and nothing that quantize began",
                got=str(self.folder),
                hint="name a new one",
            )

    def _resume(self, log: DurableLog) -> dict[int, dict[str, Any]]:
        """Shards that are done, by number. Raises SignatureError."""
        mine: dict[str, Any] = {
            "source": self.checkpoint.content_key(),
            "recipe": asdict(self.recipe),
            "shards": _digest([[item.name for item in items] for items in self.shards]),
        }
        entries = []
        for offset, line in log.lines():
            if not line.endswith(b"\n"):
                log.truncate(offset)  # torn
                break
            entries.append(json.loads(line))
        if not entries:
            _append(log, mine)
            return {}
        if entries[0] != mine:
            raise SignatureError(
                f"{self.folder} holds another quantization",
                expected=f"the same model, flags and shards: {json.dumps(entries[0])[:200]}",
                hint="name a new folder, or give the flags it was begun with",
            )
        return {e["shard"]: e for e in entries[1:] if self._path(e["shard"]).exists()}

    def _check_space(self, done: Mapping[int, object]) -> None:
        left = [items for number, items in enumerate(self.shards) if number not in done]
        for partial in self.folder.glob(f"*{PARTIAL}"):
            partial.unlink()
        needed = sum(item.nbytes for items in left for item in items)
        free = shutil.disk_usage(self.folder).free
        if free < needed * 1.01:
            raise StorageError(
                "too little space for the integers",
                expected=format_bytes(needed),
                got=f"{format_bytes(free)} free in {self.folder}",
            )

    def _path(self, number: int) -> Path:
        return self.folder / f"model-{number + 1:05}-of-{len(self.shards):05}.safetensors"

    def _complete(self) -> None:
        """Index, tokenizer and generation files, and config.json last."""
        if (self.folder / "config.json").exists():
            return
        names = {
            n: self._path(i).name for i, s in enumerate(self.shards) for t in s for n in t.stored
        }
        total = sum(item.nbytes for items in self.shards for item in items)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        self._put(INDEX, index)
        for path in _companions(self.checkpoint.folder):
            self._faults("quantize.file")
            write_durably(self.folder / path.name, path.read_bytes(), self._faults)
        ignore = ignored(self.model, self.checkpoint, self.recipe.head)
        config = {
            **self.checkpoint.config,
            "quantization_config": quantization_config(self.form, ignore, _LAYOUT_VERSION),
        }
        self._put("config.json", config)

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        self._faults("quantize.file")
        text = json.dumps(content, indent=2) + "\n"
        write_durably(self.folder / name, text.encode(), self._faults)

    # -- shards --------------------------------------------------------------------------

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Each works on tensors of its own with one thread: small operations on blocks that stay
        in the cache, and nobody waits for anybody."""
        pool = ThreadPoolExecutor(self._threads, "quantize", initializer=_one_thread)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    def _write(
        self,
        number: int,
        items: Sequence[Item],
        reader: DiskReader,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> list[list[Any]]:
        """One shard, durable under its name; [layer, role, error, whole] sums of its tensors."""
        errors = Errors()
        writer = ShardWriter(self._path(number), _in_order(items))
        with closing(writer):
            try:
                made = [pool.submit(self._write_item, item, writer, reader) for item in items]
                for item, sums in zip(items, made, strict=True):
                    errors.add(item.layer, item.role, *sums.result())
                    progress(item.entry.nbytes)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # nobody writes to a closed file
                raise
            self._faults("quantize.fsync")
            writer.sync()
            self._faults("quantize.rename")
            writer.publish()
        sync_folder(self.folder)
        self._faults("quantize.renamed")
        return [[layer, role, *sums] for (layer, role), sums in errors.sums.items()]

    def _write_item(
        self, item: Item, writer: ShardWriter, reader: DiskReader
    ) -> tuple[float, float]:
        """Write what becomes of one tensor; its squared error and squared weights."""
        self._faults("quantize.tensor")
        if item.form is None:
            for offset, piece in _bytes_of(item, reader, 4 * self._block):
                writer.write(item.name, offset, piece)
            return 0.0, 0.0
        if item.form.packed:
            writer.write(f"{item.name}_shape", 0, _bytes(torch.tensor(item.entry.shape)))
        error = whole = 0.0
        for row, block in _rows_of(item, reader, self._block):
            made = self._quantize(block, item.form)
            error += float((made.dequantized() - block).square_().sum(dtype=torch.float64))
            whole += float(block.square().sum(dtype=torch.float64))
            for suffix, part in item.form.parts(item.entry.shape).items():
                tensor = {"_scale": made.scale, "_zero_point": made.zero_point}.get(suffix)
                tensor = made.values if tensor is None else tensor
                first, _ = part.rows(row, row + len(block))
                writer.write(item.name + suffix, first * part.row_bytes, _bytes(tensor))
        return error, whole

    def _quantize(self, block: Tensor, form: Form) -> QuantizedWeight:
        made = quantize(
            block, form.bits, form.group, packed=form.packed, symmetric=not form.zeros,
            scale_dtype=DTYPES[form.scale], search=self.recipe.searches,
        )  # fmt: skip
        if not made.scale.isfinite().all():
            raise CheckpointError(
                "a weight is not finite, or too large for the format of its scale", got=form.scale
            )
        return made

    def _result(self, lines: Mapping[int, Mapping[str, Any]]) -> Quantized:
        errors = Errors()
        for line in lines.values():
            for layer, role, error, whole in line["sums"]:
                errors.add(layer, role, error, whole)
        items = [item for shard in self.shards for item in shard]
        integers = [item for item in items if item.form is not None]
        return Quantized(
            folder=self.folder,
            form=self.form,
            errors=errors,
            source_bytes=self.source_bytes,
            bytes=sum(item.nbytes for item in items),
            integer_weights=sum(math.prod(item.entry.shape) for item in integers),
            integer_bytes=sum(item.nbytes for item in integers),
            seconds=sum(line["seconds"] for line in lines.values()),
        )


def _blocks(shards: Sequence[Sequence[Item]], memory: int | None, threads: int) -> tuple[int, int]:
    """How many threads work, and weights that each rounds at a time, within ``memory``. Raises
    BudgetError when not even one thread and the fewest rows fit."""
    forms = [(item.form, item.entry.shape) for s in shards for item in s if item.form is not None]
    least = max(form.row_multiple * shape[1] for form, shape in forms)
    wanted = max(BLOCK_ELEMENTS, least)
    if memory is None:
        return threads, wanted
    smallest = _worker_bytes(least)
    if memory < smallest:
        raise BudgetError(
            "memory is too small to quantize a row",
            smallest_bytes=smallest,
            expected=f"at least {format_bytes(smallest)}",
            got=format_bytes(memory),
        )
    threads = min(threads, memory // smallest)
    return threads, min(wanted, (memory // threads - 4 * ALIGN) // ELEMENT_BYTES)


def _worker_bytes(elements: int) -> int:
    return elements * ELEMENT_BYTES + 4 * ALIGN


def _one_thread() -> None:
    torch.set_num_threads(1)  # of this thread


def _in_order(items: Sequence[Item]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of a shard as they lie in the file: shapes first, which no page needs."""
    stored = {name: s for item in items for name, s in item.stored.items()}
    shapes = {name: s for name, s in stored.items() if s[0] == "i64"}
    return shapes | stored


def _bytes_of(item: Item, reader: DiskReader, most: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of the source tensor, ``most`` at a time; valid until the next."""
    entry = item.entry
    room = align_up(min(most, max(1, entry.nbytes))) + 2 * ALIGN
    with mmap.mmap(-1, room) as area, memoryview(area) as slot:
        for offset in range(0, entry.nbytes, most):
            count = min(most, entry.nbytes - offset)
            start = entry.offset + offset
            lead = start % ALIGN
            reader.read((FileRange(entry.file, start - lead, lead + count, 0),), slot)
            with slot[lead : lead + count] as piece:
                yield offset, piece


def _rows_of(item: Item, reader: DiskReader, elements: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, fp32 rows) of the source matrix, at most ``elements`` weights at a time."""
    entry, form = item.entry, item.form
    assert form is not None
    rows, columns = entry.shape
    step = max(1, elements // columns // form.row_multiple) * form.row_multiple
    row_bytes = entry.nbytes // rows
    for offset, piece in _bytes_of(item, reader, step * row_bytes):
        raw = torch.frombuffer(bytearray(piece), dtype=torch.uint8)
        yield offset // row_bytes, raw.view(DTYPES[entry.dtype]).view(-1, columns).float()


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _companions(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation settings: whatever small file a model comes with."""
    patterns = [p for p in FILES if not p.endswith(".safetensors")]
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(p for p in found if p.name not in ("config.json", INDEX))


def _append(log: DurableLog, line: Mapping[str, Any]) -> None:
    log.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _source_bytes(items: Sequence[Item]) -> int:
    return sum(item.entry.nbytes for item in items)


def _digest(value: object) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
