"""Many small jobs: what one process holds must not grow, nor what many leave behind."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any, NamedTuple

from headrace.memory.tiers import rss_bytes
from tools.soak import rig as rigs
from tools.soak.kills import PATIENCE
from tools.soak.rig import Rig

JOBS, PROCESSES = 1000, 60

WARM = 200
"""Jobs before the first look: allocators and caches fill."""

MOST_RSS_GROWTH = 16 << 20
"""Bytes of RSS that the jobs after WARM may add, all together."""

MOST_SPREAD = 0.10
"""Of the peak RSS of separate processes: the last ten over the first ten."""


class Held(NamedTuple):
    """What a process holds."""

    rss: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Held:
        """This process."""
        return cls(rss_bytes(), *(len(os.listdir(f"/proc/self/{n}")) for n in ("task", "fd")))


def in_one_process(rig: Rig, folder: Path, context: Any, jobs: int = JOBS) -> tuple[str, str]:
    """(figures, what is wrong) of ``jobs`` jobs one after the other."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_many, args=(rig, folder, jobs, theirs))
    process.start()
    theirs.close()
    try:
        first, last, lines = ours.recv()
    except EOFError:
        return "", "the process died"
    process.join(PATIENCE)
    figures = (
        f"{jobs} jobs, {lines} lines; after {min(WARM, jobs // 2)}: {_said(first)}; "
        f"at the end: {_said(last)}"
    )
    if last.threads > first.threads or last.descriptors > first.descriptors:
        return figures, "threads or descriptors grew"
    grown = last.rss - first.rss
    return figures, f"RSS grew by {grown >> 20} MiB" if grown > MOST_RSS_GROWTH else ""


def in_many_processes(
    rig: Rig, folder: Path, context: Any, processes: int = PROCESSES
) -> tuple[str, str]:
    """(figures, what is wrong) of a job in each of ``processes`` processes."""
    before, peaks = Held.now(), []
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(rig, folder / f"p{number}.jsonl", theirs))
        process.start()
        theirs.close()
        peaks.append(ours.recv())
        ours.close()
        process.join(PATIENCE)
        process.close()
    after = Held.now()
    first, last = max(peaks[:10]), max(peaks[-10:])
    figures = f"{processes} processes, peak RSS {first >> 20} MiB, at the end {last >> 20} MiB"
    if (after.threads, after.descriptors) > (before.threads, before.descriptors):
        return figures, "threads or descriptors of the parent grew"
    left = [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]
    if left:
        return figures, f"left behind: {left[:3]}"
    return figures, "later processes took more" if last > first * (1 + MOST_SPREAD) else ""


def _many(rig: Rig, folder: Path, jobs: int, told: Any) -> None:
    first, lines = Held.now(), 0
    for number in range(jobs):
        output = folder / f"job{number}.jsonl"
        rigs.run(rig, output)
        lines += len(rigs.records(output))
        for path in folder.glob(f"job{number}.jsonl*"):
            path.unlink()
        if number + 1 == min(WARM, jobs // 2):
            first = Held.now()
    told.send((first, Held.now(), lines))


def _one(rig: Rig, output: Path, told: Any) -> None:
    rigs.run(rig, output)
    told.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    told.close()
    sys.stdout.flush()


def _said(held: Held) -> str:
    return f"{held.rss / 2**20:.1f} MiB, {held.threads} threads, {held.descriptors} descriptors"
