"""The job that a plan is for, in lengths: from a batch file, or from what the command line says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError, InputFileError, UsageError
from headrace.specs.lengths import LengthRange
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from headrace.engine.lines import JobLine
    from headrace.engine.token_counts import TokenCounter

SAMPLED = 1000
"""Lines whose tokens are counted; the lengths of the others follow from their characters."""

BYTES_PER_TOKEN = 4.0
"""English text, common vocabularies, where there is no tokenizer to ask."""

MESSAGE_TOKENS = 6
"""What a chat template puts around a message, where there is no template to ask."""

GUESSED_ERROR = 0.15
"""Relative error (90 %) of prompt tokens that were counted in characters."""

_Z90 = 1.645

Count = Callable[["JobLine"], int]


@dataclass(frozen=True)
class Lengths:
    """A job's lengths. ``error`` is the relative error (90 %) of its prompt tokens that comes from
    looking at a sample; ``notes`` say in words what was looked at."""

    workload: Workload
    error: float = 0.0
    notes: tuple[str, ...] = ()


def lengths_said(prompt: str, gen: str, requests: int, context: int, seed: int) -> Lengths:
    """``requests`` sequences as ``--prompt-len`` and ``--gen-len`` say: a length for all, or a
    range that is drawn from. No error: such lengths are known. Raises UsageError for what is no
    length, or does not fit ``context`` tokens."""
    prompts = LengthRange.parse(prompt, "--prompt-len")
    gens = LengthRange.parse(gen, "--gen-len")
    if prompts.high + gens.high > context:
        room = context - prompts.high
        raise UsageError(
            "--prompt-len and --gen-len",
            expected=f"at most {context} tokens together",
            got=prompts.high + gens.high,
            hint=f"--gen-len up to {room}" if room > 0 else f"--prompt-len below {context}",
        )
    note = f"prompts of {prompts} tokens and outputs of {gens}, drawn from seed {seed}"
    notes = (note,) if prompts.varies or gens.varies else ()
    return Lengths(Workload.drawn(requests, prompts, gens, seed), notes=notes)


def lengths_of(path: Path, folder: Path | None, context: int, max_tokens: int) -> Lengths:
    """Lengths of every line of a batch file, as a run would take them: prompts by the tokenizer in
    ``folder`` (None: by their characters), outputs at half their limit unless EOS is ignored.

    Lines at fault do not count. Costs about a tenth of a millisecond a line and the tokens of
    SAMPLED lines. Raises InputFileError when no line can run, ModelError for a bad tokenizer.
    """
    lines, bad = _parsed(path, max_tokens)
    counter = None if folder is None else _counter(folder)
    if counter is None:
        counts = [_by_characters(line) for line in lines]
        error = GUESSED_ERROR
        notes = [f"prompt tokens guessed at {BYTES_PER_TOKEN:g} bytes each: there is no tokenizer"]
    else:
        counts, error, notes = _tokenised(lines, counter)
    pairs = zip(lines, counts, strict=True)
    job = [(line, n) for line, n in pairs if n is not None and 0 < n < context]
    if not job:
        raise InputFileError(f"input {path}", expected="a line that can run", got="none")
    bad += len(lines) - len(job)
    if bad:
        notes.append(f"{bad} lines at fault do not count")
    return Lengths(_workload(job, context), error, tuple(notes))


def _parsed(path: Path, max_tokens: int) -> tuple[list[JobLine], int]:
    """The lines that parse, and how many do not."""
    from headrace.engine.inputs import BatchInput
    from headrace.engine.lines import JobLine, LineParser

    source, parser = BatchInput(path), LineParser({"max_tokens": max_tokens})
    scan = source.scan()
    parsed = (parser.parse(n.identity, n.number, n.occurrence) for n in source.read(scan))
    lines = [line for line in parsed if isinstance(line, JobLine)]
    return lines, scan.lines - len(lines)


def _tokenised(
    lines: Sequence[JobLine], counter: TokenCounter
) -> tuple[list[int | None], float, list[str]]:
    """Tokens of every line (None where it cannot be encoded): counted in an even sample, and by
    the sample's tokens per character elsewhere, with the relative error of that."""
    step = max(1, -(-len(lines) // SAMPLED))
    try:
        counted = {i: _encoded(counter, lines[i]) for i in range(0, len(lines), step)}
    finally:
        counter.close()
    if step == 1:
        return list(counted.values()), 0.0, []
    pairs = [(n, _characters(lines[i])) for i, n in counted.items() if n is not None]
    density = sum(n for n, _ in pairs) / max(1, sum(c for _, c in pairs))
    counts = [
        counted[i] if i in counted else max(1, round(density * _characters(line)))
        for i, line in enumerate(lines)
    ]
    note = f"tokens counted in {len(counted)} of {len(lines)} lines, in the others by characters"
    return counts, _ratio_error(pairs, density), [note]


def _counter(folder: Path) -> TokenCounter | None:
    from headrace.engine.token_counts import TokenCounter

    return TokenCounter.load(folder)


def _encoded(counter: TokenCounter, line: JobLine) -> int | None:
    try:
        if line.messages is not None:
            return counter.count_chat(line.messages)
        if isinstance(line.prompt, str):
            return counter.count(line.prompt)
        return len(line.prompt or ())
    except HeadraceError:
        return None


def _ratio_error(pairs: Sequence[tuple[int, int]], density: float) -> float:
    """Relative half-width (90 %) of a ratio of sums, from its residuals (a ratio estimator)."""
    if len(pairs) < 2:
        return GUESSED_ERROR
    mean = sum(n for n, _ in pairs) / len(pairs)
    spread = sum((n - density * c) ** 2 for n, c in pairs) / (len(pairs) - 1)
    return _Z90 * math.sqrt(spread / len(pairs)) / max(mean, 1e-9)


def _by_characters(line: JobLine) -> int | None:
    if line.prompt is not None and not isinstance(line.prompt, str):
        return len(line.prompt)
    messages = MESSAGE_TOKENS * len(line.messages or ())
    return max(1, round(_characters(line) / BYTES_PER_TOKEN) + messages)


def _characters(line: JobLine) -> int:
    if line.messages is not None:
        return sum(len(str(message["content"])) for message in line.messages)
    return len(line.prompt or "")


def _workload(job: Sequence[tuple[JobLine, int]], context: int) -> Workload:
    """Every choice of every line a sequence, as ``engine.prompts.workload_of``."""
    prompts, gens, limits = [], [], []
    for line, count in job:
        room = context - count
        most = room if line.params.max_tokens is None else min(line.params.max_tokens, room)
        gen = most if line.params.ignore_eos else -(-most // 2)
        for _ in range(line.params.n):
            prompts.append(count)
            gens.append(gen)
            limits.append(most)
    assumed = not all(line.params.ignore_eos for line, _ in job)
    return Workload(tuple(prompts), tuple(gens), assumed, tuple(limits))
