"""``quantize`` from folder to report: integers, then the text that tells what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.engine.hub import local_folder
from headrace.engine.loaded import Loaded
from headrace.engine.probe import usable_threads
from headrace.engine.quantizing import Quantized, Quantizing
from headrace.engine.recipe import Recipe
from headrace.engine.scoring import Score, perplexity
from headrace.errors import UsageError
from headrace.memory.tiers import default_budget
from headrace.specs.policy import WITH_INTEGERS

if TYPE_CHECKING:
    from rich.console import Console

PASSAGE = Path(__file__).with_name("passage.txt")
"""Nine short passages of plain English, about 900 tokens, made for this."""

PAGES = Path(__file__).with_name("pages.txt")
"""Sentences of the documentation, about 2200 tokens: with the passages, the bundled text."""


@dataclass(frozen=True)
class Settings:
    """What was asked for. ``text`` None: the bundled text."""

    model: str
    output: Path
    weights: str
    group: int | None = None
    symmetric: bool = True
    search: bool | None = None
    head: bool = False
    text: Path | None = None
    evaluate: bool = True
    memory: int | None = None
    shard_bytes: int = 256_000_000
    threads: int | None = None
    kernels: str = "auto"
    revision: str | None = None


def run_quantize(settings: Settings, console: Console) -> dict[str, Any]:
    """Quantize, then score the text before and after. Returns what ``--json`` prints."""
    recipe = Recipe(
        settings.weights, settings.group, settings.symmetric, settings.search, settings.head
    )
    source = local_folder(settings.model, settings.revision)
    job = Quantizing(
        source,
        settings.output,
        recipe,
        memory=settings.memory,
        shard_bytes=settings.shard_bytes,
        threads=settings.threads or usable_threads(),
    )
    with _bytes_bar(console, job.source_bytes) as progress:
        made = job.run(perf_counter, progress)
    report = {"model": settings.model, **_made(made, job.model.layers)}
    if settings.evaluate:
        before, after = _scores(settings, source, made.folder, console)
        report["perplexity"] = _compared(settings, before, after)
        for entry in report["layers"]:
            entry["output"] = {
                name: before.outputs.relative_error(score.outputs, entry["layer"])
                for name, score in after.items()
            }
    return report


def _made(made: Quantized, layers: int) -> dict[str, Any]:
    errors = made.errors
    return {
        "output": str(made.folder),
        "format": made.form.label,
        "group": made.form.group,
        "symmetric": not made.form.zeros,
        "source_bytes": made.source_bytes,
        "bytes": made.bytes,
        "bits_per_integer_weight": 8 * made.integer_bytes / made.integer_weights,
        "integer_weights": made.integer_weights,
        "quantize_seconds": made.seconds,
        "relative_error": errors.total,
        "layers": [
            {
                "layer": layer,
                "attention": errors.relative(layer, "attention"),
                "experts": errors.relative(layer, "experts"),
            }
            for layer in range(layers)
        ],
        "head_error": errors.relative(None, "head"),
    }


def _scores(
    settings: Settings, source: Path, made: Path, console: Console
) -> tuple[Score, dict[str, Score]]:
    """The text with the source, and with the integers and both kinds of activations."""
    files = (PASSAGE, PAGES) if settings.text is None else (settings.text,)
    text = "\n\n".join(f.read_text(encoding="utf-8", errors="replace") for f in files)
    memory = settings.memory or default_budget().budget_bytes
    threads = settings.threads or usable_threads()

    def score(folder: Path, activations: str, on_tokens: Callable[[int], object]) -> Score:
        with closing(Loaded.open(folder)) as loaded:
            return perplexity(
                loaded,
                text,
                memory=memory,
                clock=perf_counter,
                threads=threads,
                kernels=settings.kernels,
                activations=activations,
                on_tokens=on_tokens,
            )

    with _scoring(console, "perplexity of the source") as on_tokens:
        before = score(source, "f32", on_tokens)
    if before.tokens < 1:
        raise UsageError("the text is empty")
    after = {}
    for activations in WITH_INTEGERS:
        with _scoring(console, f"perplexity, activations in {activations}") as on_tokens:
            after[activations] = score(made, activations, on_tokens)
    return before, after


def _compared(settings: Settings, before: Score, after: Mapping[str, Score]) -> dict[str, Any]:
    changes = {name: before.change(score) for name, score in after.items()}
    return {
        "text": "the bundled text" if settings.text is None else str(settings.text),
        "tokens": before.tokens,
        "source": before.perplexity,
        **{name: score.perplexity for name, score in after.items()},
        "change": {name: change.relative for name, change in changes.items()},
        "change_error": {name: change.error for name, change in changes.items()},
    }


@contextmanager
def _bytes_bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)


@contextmanager
def _scoring(console: Console, what: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.update(task, advance=count)
