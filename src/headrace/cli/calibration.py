"""What ``calibrate`` does: small checkpoints written to the disk in question, run through, deleted;
or a checkpoint that is there."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.output import warn
from headrace.errors import StorageError
from headrace.planner.profile import Profile, Read, ShapeCurves, weights_of
from headrace.specs.hardware import CPU_FLOPS, D2H, DISK, DRAM, H2D, HOST, Hardware
from headrace.specs.registry import all_known_hardware
from headrace.specs.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from headrace.engine.link import Accelerator
    from headrace.engine.loaded import Loaded

KV_DTYPE = "f16"

SHAPES: Mapping[str, tuple[str, str, Mapping[str, int]]] = {
    "wide experts, grouped heads, bf16": (
        "mixtral",
        "bf16",
        {"layers": 2, "hidden": 2048, "heads": 16, "kv_heads": 4, "experts": 4, "top_k": 1}
        | {"ffn_width": 4096, "vocab": 8192},
    ),
    "narrow experts, bf16": (
        "olmoe",
        "bf16",
        {"layers": 3, "hidden": 1024, "heads": 16, "experts": 32, "top_k": 4}
        | {"ffn_width": 768, "vocab": 8192},
    ),
}
"""Measured where no checkpoint is named: architecture, format, sizes."""

INTEGERS = ("int8", "int4")
"""And the last of them in integers. 1.5 GB of files in all."""

ROUNDED = "bf16"
"""And the last whose weights are stored so with activations that are rounded to it."""

READ_SIZES = (1 << 20, 4 << 20, 16 << 20)
READ_DEPTHS = (1, 2, 4)

_SHAPE_SHARE, _READ_SHARE, _BESIDE_SHARE, _LINK_SHARE = 0.25, 0.08, 0.03, 0.05
"""Of the seconds asked for. To write the checkpoints, and to play every load once or twice, takes
most of the rest."""


def calibrate_machine(
    path: Path,
    seconds: float,
    clock: Callable[[], float],
    made: str,
    said: Callable[[str], None],
    accelerator: Accelerator | None = None,
) -> Profile:
    """Measure the disk under ``path`` (a checkpoint, or a folder in which small ones are made for
    a while), this machine, and the link to its ``accelerator``, in about ``seconds``."""
    from headrace.engine.probe import measure_contention, measure_machine, usable_threads
    from headrace.engine.profiles import machine_profile

    found: list[Hardware] = []
    shapes: list[ShapeCurves] = []
    reads: list[Read] = []
    threads = usable_threads()
    with _checkpoints(path, said) as checkpoints:
        measured = _measured(checkpoints)
        each = seconds * _SHAPE_SHARE / (2 * len(measured))
        for name, loaded, activations in measured:
            weights, known = sum(loaded.page_bytes.values()), None
            for streams in (False, True):
                said(f"operations: {name}{', streamed' if streams else ''}")
                hardware = measure_machine(
                    loaded,
                    clock,
                    threads=threads,
                    kv_dtype=KV_DTYPE,
                    activations=activations,
                    capacity_bytes=weights // 2 if streams else 2 * weights,
                    known=known,
                    seconds=each,
                )
                found.append(hardware)
                known = known or hardware  # it has the same roofs
                shapes.append(
                    ShapeCurves.of(loaded.model, KV_DTYPE, streams, hardware, activations)
                )
        first = next(iter(checkpoints.values()))
        said("reads")
        reads = list(_reads(first, clock, seconds * _READ_SHARE))
        said("reads beside arithmetic")
        both = measure_contention(first, clock, threads, seconds * _BESIDE_SHARE / 3)
        link = _link(accelerator, first, clock, seconds * _LINK_SHARE, said)
    return machine_profile(found, shapes, made, reads, both._asdict(), link)


def _measured(checkpoints: Mapping[str, Loaded]) -> list[tuple[str, Loaded, str]]:
    """Name, checkpoint and activations (as in Policy) of everything that is run through."""
    found = [(name, loaded, "int8") for name, loaded in checkpoints.items()]
    stored = [pair for pair in checkpoints.items() if weights_of(pair[1].model) == ROUNDED]
    for name, loaded in stored[-1:]:
        found.append((f"{name}, activations in {ROUNDED}", loaded, ROUNDED))
    return found


def profile_tables(profile: Profile, stock: Hardware) -> list[Table]:
    """Rates beside the stock ones, reads by size and depth, operations by shape and rows."""
    return [_rates_table(profile, stock), _reads_table(profile), *_ops_tables(profile)]


def difference(profile: Profile, stock: Hardware) -> dict[str, dict[str, float]]:
    """Rate by rate: measured, stock, and how far measured is from stock as a share of it. A link
    is compared where both have one."""
    ours, theirs = profile.hardware.roofs, stock.roofs
    links = [roof for roof in (H2D, D2H) if roof in ours and roof in theirs]
    pairs = {
        **{roof: (ours[roof], theirs[roof]) for roof in (CPU_FLOPS, DRAM, DISK, *links)},
        "task_seconds": (profile.hardware.task_seconds, stock.task_seconds),
        "row_seconds": (profile.hardware.row_seconds, stock.row_seconds),
    }
    return {
        name: {"measured": here, "stock": known, "difference": here / known - 1.0}
        for name, (here, known) in pairs.items()
    }


def with_stock_link(
    stock: Hardware, accelerator: Accelerator | None
) -> tuple[Hardware, str | None]:
    """``stock`` with the link of the registry's machine whose accelerator is called like this one,
    and that machine's name; ``stock`` as it is, and None, where there is none. Every word of the
    registry's name must be one of the accelerator's, its memory in GB or not."""
    words = set(re.split(r"[^a-z0-9]+", "" if accelerator is None else accelerator.name.lower()))
    words |= {word.removesuffix("gb") for word in words}
    for name, known in all_known_hardware().items():
        if known.hardware.has_device and words >= set(name.split("-")):
            roofs = {**stock.roofs, **{roof: known.hardware.roofs[roof] for roof in (H2D, D2H)}}
            return replace(stock, roofs=roofs), name
    return stock, None


@contextmanager
def _checkpoints(path: Path, said: Callable[[str], None]) -> Iterator[dict[str, Loaded]]:
    """Name -> checkpoint, opened; made in a folder of ``path`` that is deleted afterwards unless
    ``path`` is one."""
    from headrace.engine.loaded import Loaded

    if (path / "config.json").is_file():
        with closing(Loaded.open(path)) as loaded:
            yield {path.resolve().name: loaded}
        return
    folder = Path(tempfile.mkdtemp(prefix="headrace-calibrate-", dir=path))
    opened: dict[str, Loaded] = {}
    try:
        for number, (name, (arch, dtype, sizes)) in enumerate(SHAPES.items()):
            said(f"writing a checkpoint: {name}")
            opened[name] = _made(folder / str(number), arch, dtype, sizes)
        for weights in INTEGERS:
            said(f"writing a checkpoint: {name}, as {weights}")
            opened[f"{name}, as {weights}"] = _quantized(folder / str(number), weights)
        yield opened
    finally:
        for loaded in opened.values():
            loaded.close()
        shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path, arch: str, dtype: str, sizes: Mapping[str, Any]) -> Loaded:
    from headrace.cli.make_checkpoint import make_checkpoint, shape_spec
    from headrace.engine.loaded import Loaded

    make_checkpoint(shape_spec(arch, None, dtype, sizes), folder)
    return Loaded.open(folder)


def _quantized(source: Path, weights: str) -> Loaded:
    """A copy of ``source`` in integers, beside it: nearest ones, no search for better scales."""
    from time import perf_counter

    from headrace.engine.loaded import Loaded
    from headrace.engine.probe import usable_threads
    from headrace.engine.quantizing import Quantizing
    from headrace.engine.recipe import Recipe

    made = source.with_name(f"{source.name}-{weights}")
    recipe = Recipe(weights, search=False)
    Quantizing(source, made, recipe, threads=usable_threads()).run(perf_counter)
    return Loaded.open(made)


def _reads(loaded: Loaded, clock: Callable[[], float], seconds: float) -> Iterator[Read]:
    from headrace.engine.probe import ReadRate

    each = seconds / (len(READ_SIZES) * len(READ_DEPTHS))
    for size in READ_SIZES:
        rate = ReadRate(loaded, clock, each, size)
        yield from (Read(size, depth, rate(depth)) for depth in READ_DEPTHS)


def _link(
    accelerator: Accelerator | None,
    loaded: Loaded,
    clock: Callable[[], float],
    seconds: float,
    said: Callable[[str], None],
) -> dict[str, float]:
    """Roofs of the link, with pages as large as ``loaded``'s; none without an accelerator, or with
    one that cannot be used: all else that was measured is kept."""
    from headrace.engine.link import link_roofs, measure_link

    if accelerator is None:
        return {}
    said(f"the link to {accelerator.name}")
    try:
        page = max(loaded.page_bytes.values())
        return link_roofs(measure_link(accelerator, page, clock, seconds))
    except StorageError as error:
        warn(str(error))
        return {}


def _rates_table(profile: Profile, stock: Hardware) -> Table:
    from rich.table import Table

    table = Table("rate", "measured", "stock", "difference", box=None, padding=(0, 2, 0, 0))
    for name, pair in difference(profile, stock).items():
        texts = [_rate_text(name, pair[side]) for side in ("measured", "stock")]
        table.add_row(_RATES[name], *texts, f"{pair['difference']:+.0%}")
    for row in _link_rows(profile, stock):
        table.add_row(*row)
    for name, share in profile.beside.items():
        table.add_row(f"{name} while both go on", f"{share:.0%} of the rate alone", "", "")
    return table


def _link_rows(profile: Profile, stock: Hardware) -> Iterator[tuple[str, str, str, str]]:
    """Rates of a link that ``stock`` has none to compare with; or that there is no link."""
    rates = profile.hardware.roofs
    if H2D not in rates:
        yield "link", "none: no accelerator that torch can use", "", ""
    for roof in (H2D, D2H):
        if roof in rates and roof not in stock.roofs:
            yield _RATES[roof], _rate_text(roof, rates[roof]), "-", ""


def _reads_table(profile: Profile) -> Table:
    from rich.table import Table

    depths = sorted({read.depth for read in profile.reads})
    table = Table("reads of", *(f"{d} in flight" for d in depths), box=None, padding=(0, 2, 0, 0))
    for size in sorted({read.request_bytes for read in profile.reads}):
        row = {read.depth: read.rate for read in profile.reads if read.request_bytes == size}
        cells = (f"{format_bytes(row[d])}/s" if d in row else "-" for d in depths)
        table.add_row(format_bytes(size), *cells)
    return table


def _ops_tables(profile: Profile) -> Iterator[Table]:
    from rich.table import Table

    for shape in profile.shapes:
        title = (
            f"{shape.weights} x {shape.activations}, hidden {shape.hidden}, "
            f"width {shape.ffn_width}, queries {shape.q_size}, keys {shape.kv_size}"
            f"{', streamed' if shape.streams else ''}: share of the roof at rows"
        )
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for op, curve in sorted(shape.efficiency.items()):
            table.add_row(op, "  ".join(f"{rows:.0f}: {share:.0%}" for rows, share in curve))
        yield table


def _rate_text(name: str, value: float) -> str:
    if name.endswith("seconds"):
        return f"{value * 1e6:.1f} us"
    return f"{value / 1e9:.0f} GFLOP/s" if name == CPU_FLOPS else f"{format_bytes(value)}/s"


_RATES = {
    CPU_FLOPS: "arithmetic",
    DRAM: "memory",
    DISK: "disk",
    HOST: "host",
    H2D: "to the accelerator",
    D2H: "from the accelerator",
    "task_seconds": "a task, doing nothing",
    "row_seconds": "drawing a token",
}
