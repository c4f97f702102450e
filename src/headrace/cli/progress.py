"""The progress of a long job: a bar on a terminal, lines in the log, nothing in a pipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from headrace.specs.units import format_seconds

log = logging.getLogger("headrace.progress")

LOG_EVERY_SECONDS = 30.0


class Snapshot(Protocol):
    """Where a job stands: what ``engine`` reports and this file shows."""

    @property
    def done(self) -> int:
        """Lines whose output is durable, those of earlier runs not counted."""
        ...

    @property
    def failed(self) -> int:
        """Lines among ``done`` that carry an error."""
        ...

    @property
    def total(self) -> int | None:
        """Lines to do in this run; None while the input is still being read."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens prefilled so far."""
        ...

    @property
    def generated_tokens(self) -> int:
        """Tokens drawn so far."""
        ...

    @property
    def seconds(self) -> float:
        """Since the run began."""
        ...


def tokens_per_second(now: Snapshot) -> float:
    """Generated tokens over elapsed time."""
    return now.generated_tokens / now.seconds if now.seconds > 0 else 0.0


def seconds_left(
    now: Snapshot, predicted: float | None, expected_tokens: int | None
) -> float | None:
    """ETA by tokens where their number is foreseen, else by lines; before either, the plan's."""
    share = _share_done(now, expected_tokens)
    if share <= 0:
        return None if predicted is None else max(predicted - now.seconds, 0.0)
    return now.seconds * (1 - share) / share


def describe(now: Snapshot, predicted: float | None, expected_tokens: int | None) -> str:
    """``41 tok/s, ETA 3 min 2 s (predicted 4 min 0 s in all), 2 failed``."""
    left = seconds_left(now, predicted, expected_tokens)
    parts = [f"{tokens_per_second(now):.1f} tok/s"]
    if left is not None:
        plan = "" if predicted is None else f" (predicted {format_seconds(predicted)} in all)"
        parts.append(f"ETA {format_seconds(left)}{plan}")
    if now.failed:
        parts.append(f"{now.failed} failed")
    return ", ".join(parts)


@contextmanager
def show_progress(
    console: Console, predicted: float | None = None, expected_tokens: int | None = None
) -> Iterator[Callable[[Snapshot], None]]:
    """A function to call with each snapshot; draws only when ``console`` is a terminal."""
    bar = RichProgress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
        transient=False,
    )
    with bar:
        task = bar.add_task("starting", total=None)
        yield _Reporter(
            lambda now, text: bar.update(
                task, completed=now.done, total=now.total, description=text
            ),
            predicted,
            expected_tokens,
        )


class _Reporter:
    """Hands each snapshot to the bar, and now and then to the log."""

    def __init__(
        self,
        draw: Callable[[Snapshot, str], object],
        predicted: float | None,
        expected_tokens: int | None,
    ) -> None:
        self.draw = draw
        self.predicted = predicted
        self.expected_tokens = expected_tokens
        self.logged = 0.0

    def __call__(self, now: Snapshot) -> None:
        text = describe(now, self.predicted, self.expected_tokens)
        self.draw(now, text)
        if now.seconds - self.logged >= LOG_EVERY_SECONDS:
            self.logged = now.seconds
            log.info("%d of %s lines, %s", now.done, now.total, text)


def _share_done(now: Snapshot, expected_tokens: int | None) -> float:
    if expected_tokens:
        share = (now.prompt_tokens + now.generated_tokens) / expected_tokens
        return min(share, 0.999)
    return now.done / now.total if now.total else 0.0
