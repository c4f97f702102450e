"""What every contestant is given, and what is kept of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Shape:
    """``batch`` sequences at once, of ``prompt_len`` random tokens, ``gen_len`` more each."""

    batch: int
    prompt_len: int
    gen_len: int
    threads: int


@dataclass(frozen=True)
class Times:
    """What a contestant says of its own run, loading left out. ``decode_tokens`` came in
    ``decode_seconds``; ``seconds`` is from the first prompt's start to the last token."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    seconds: float
    version: str = ""

    @classmethod
    def parse(cls, fields: Mapping[str, object]) -> Times:
        """From a worker's JSON. Raises KeyError, TypeError or ValueError for another shape."""
        names = ("prefill_tokens", "prefill_seconds", "decode_tokens", "decode_seconds", "seconds")
        numbers = [float(fields[name]) for name in names]  # type: ignore[arg-type]
        if min(numbers) < 0:
            raise ValueError("a time or count below 0")
        prefill, prefill_seconds, decode, decode_seconds, seconds = numbers
        version = str(fields.get("version", ""))
        return cls(int(prefill), prefill_seconds, int(decode), decode_seconds, seconds, version)


class Contestant(Protocol):
    """An engine that runs as a process of its own."""

    @property
    def name(self) -> str:
        """What the table calls it: engine, and format of its weights."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files and folders of weights that it reads."""

    @property
    def scratch(self) -> str | None:
        """The folder in which it needs one for temporary files, or None."""

    def command(self, shape: Shape) -> list[str]:
        """What to run. Raises UsageError when it cannot be run at all."""

    def times(self, output: str, shape: Shape) -> Times:
        """Read its standard output. Raises ValueError saying what is wrong with it."""
