"""What an earlier run left in the output, and the removal of what it left unfinished."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from headrace.engine.bodies import key_of
from headrace.engine.durable import DurableLog
from headrace.errors import JobError

BEGINNING = b'{"id": '
"""How every output line begins."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """Keys whose output line is an answer, and keys whose output line is an error."""

    answered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


def recover(log: DurableLog) -> Recovered:
    """Read an output and cut its torn end, if any.

    Lines that do not parse at the very end were being written when the run was killed. One
    that is followed by a good line was not: JobError. Zeros are blocks that a power cut kept
    from the disk: what stands behind them was never durable either, whatever it looks like.
    """
    found = Recovered()
    torn: int | None = None
    for offset, raw in log.lines():
        if b"\0" in raw:
            torn = offset if torn is None else torn
            break
        content = _parse(raw)
        key = key_of(content) if content is not None else None
        if content is None or key is None:
            torn = offset if torn is None else torn
            continue
        if torn is not None:
            raise JobError(
                f"output {log.path} is damaged at byte {torn}, with good lines after it",
                hint="remove the damaged line, or start over with --fresh",
            )
        (found.answered if content["error"] is None else found.failed).add(key)
    if torn is not None:
        if not found.answered and not found.failed:
            _check_ours(log)
        log.truncate(torn)
    return found


def keep_answered(log: DurableLog) -> Iterator[bytes]:
    """The lines of an output that are not errors."""
    for _, raw in log.lines():
        content = _parse(raw)
        if content is not None and content["error"] is None:
            yield raw


def _check_ours(log: DurableLog) -> None:
    """Never cut a file that has no line of ours but something of somebody's: whole lines, or
    a beginning that is not that of a line of ours."""
    for _, raw in log.lines():
        text = raw.strip(b"\0\n")
        begun = text[: len(BEGINNING)] == BEGINNING[: len(text)]
        if text and (raw.endswith(b"\n") or not begun):
            raise JobError(
                f"{log.path} exists and is not an output of Headrace",
                hint="name another output, or overwrite it with --fresh",
            )


def _parse(raw: bytes) -> dict[str, Any] | None:
    """An output line; None if it is torn or none of ours."""
    if not raw.endswith(b"\n"):
        return None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "error" in content else None
