"""Rounds: every contestant on every batch in turn, again and again; medians at the end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from headrace.cli.peers.bounds import Bound, bounded, drop_cached, read_cached
from headrace.cli.peers.process import Ended, run_process
from headrace.cli.peers.shape import Contestant, Shape, Times
from headrace.errors import HeadraceError


@dataclass(frozen=True)
class Result:
    """One run. Rates are of tokens; ``error`` says why there are none."""

    name: str
    batch: int
    command: str
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    requests_per_hour: float | None = None
    peak_rss_bytes: int | None = None
    peak_charged_bytes: int | None = None
    version: str = ""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Race:
    """Who runs what. ``memory`` bounds each run, page cache included; ``timeout`` in seconds."""

    contestants: tuple[Contestant, ...]
    shapes: tuple[Shape, ...]
    rounds: int
    timeout: float
    memory: int | None = None

    def run(self, told: Callable[[str], object]) -> list[Result]:
        """Every contestant's median on every batch, the first contestant first. ``told`` hears
        of each run as it begins."""
        runs = list(self._runs(told))
        return [
            median([r for r in runs if (r.name, r.batch) == (contestant.name, shape.batch)])
            for shape in self.shapes
            for contestant in self.contestants
        ]

    def _runs(self, told: Callable[[str], object]) -> Iterator[Result]:
        failed: set[tuple[str, int]] = set()
        for number in range(1, self.rounds + 1):
            for shape in self.shapes:
                for contestant in self.contestants:
                    key = (contestant.name, shape.batch)
                    if key in failed:
                        continue  # once is enough to know, and may have taken the whole timeout
                    told(f"round {number} of {self.rounds}: {key[0]}, batch {key[1]}")
                    result = self._one(contestant, shape)
                    if result.error:
                        failed.add(key)
                    yield result

    def _one(self, contestant: Contestant, shape: Shape) -> Result:
        blank = Result(contestant.name, shape.batch, "")
        try:
            command = contestant.command(shape)
        except HeadraceError as fault:
            return replace(blank, error=str(fault))
        blank = replace(blank, command=" ".join(command))
        (read_cached if self.memory is None else drop_cached)(contestant.files)
        with bounded(self.memory) as bound:
            try:
                ended = run_process(bound.command(command), self.timeout, contestant.scratch)
            except OSError as fault:
                return replace(blank, error=f"cannot be started: {fault.strerror}")
            measured = replace(
                blank, peak_rss_bytes=ended.peak_rss, peak_charged_bytes=bound.peak_bytes
            )
            why = failure(ended, bound, self.timeout)
        if why is not None:
            return replace(measured, error=why)
        try:
            return with_times(measured, contestant.times(ended.output, shape), shape)
        except ValueError as fault:
            return replace(measured, error=str(fault))


def failure(ended: Ended, bound: Bound, timeout: float) -> str | None:
    """Why a run gave no figures, or None when it ended well."""
    lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
    said = f": {lines[-1][:160]}" if lines else ""
    if ended.code is None:
        return f"no result within {timeout:.0f} s{said}"
    if bound.killed or (ended.code == -9):
        return "out of memory: killed by the kernel"
    if ended.code:
        how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
        return f"{how}{said}"
    return None


def with_times(result: Result, times: Times, shape: Shape) -> Result:
    """Rates from times."""
    return replace(
        result,
        prefill_tokens_per_second=_rate(times.prefill_tokens, times.prefill_seconds),
        decode_tokens_per_second=_rate(times.decode_tokens, times.decode_seconds),
        requests_per_hour=_rate(3600 * shape.batch, times.seconds),
        version=times.version,
    )


def median(runs: Sequence[Result]) -> Result:
    """The medians of runs that gave figures, the largest of their peaks; else the first failure.
    A contestant that failed in a later round fails."""
    for run in runs:
        if run.error is not None:
            return run

    def middle(name: str) -> float | None:
        found = [getattr(r, name) for r in runs if getattr(r, name) is not None]
        return statistics.median(found) if found else None

    def largest(name: str) -> int | None:
        return max((getattr(r, name) for r in runs if getattr(r, name) is not None), default=None)

    return replace(
        runs[0],
        prefill_tokens_per_second=middle("prefill_tokens_per_second"),
        decode_tokens_per_second=middle("decode_tokens_per_second"),
        requests_per_hour=middle("requests_per_hour"),
        peak_rss_bytes=largest("peak_rss_bytes"),
        peak_charged_bytes=largest("peak_charged_bytes"),
    )


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 and count > 0 else None
