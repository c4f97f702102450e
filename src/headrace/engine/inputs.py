"""The input of a batch job, read line by line: a file larger than memory streams through."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from headrace.engine.lines import Identity, identify
from headrace.errors import InputFileError, LineError
from headrace.specs.faults import Faults, no_faults

LONGEST_LINE = 64 << 20
"""Bytes; a longer line is an error line."""


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line of the input: its number (from 1), identity and occurrence among equal ones."""

    number: int
    identity: Identity
    occurrence: int

    @property
    def key(self) -> str:
        """The line's key."""
        return self.identity.key(self.occurrence)


@dataclass(frozen=True, slots=True)
class InputScan:
    """What one pass over the input found. ``repeated`` holds hashes of lines that occur twice.

    ``pending`` counts lines whose key is not yet done, ``failed`` those whose answer is an error;
    ``plain`` is the kind of the first line
    that parses, and decides how lines that do not are answered.
    """

    lines: int
    pending: int
    plain: bool
    repeated: frozenset[bytes]
    failed: int = 0


class BatchInput:
    """Lines of a local file, at most ``limit`` of them (blank lines do not count)."""

    def __init__(self, path: Path, limit: int | None = None, faults: Faults = no_faults) -> None:
        """Raises InputFileError unless ``path`` is a readable regular file."""
        self.path = path
        self._limit = limit
        self._faults = faults
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputFileError(
                    f"input {path}", expected="a file", got="something that cannot be read twice"
                )
            path.open("rb").close()
        except OSError as error:
            raise InputFileError(f"input {path}: {error.strerror}") from error

    def scan(self, done: Container[str] = (), failed: Container[str] = ()) -> InputScan:
        """Count lines, those that are ``done`` or ``failed``, and find repetitions. Keeps 16 bytes
        of hash per line while it runs.

        Raises InputFileError when there is no line, or a custom_id occurs twice.
        """
        seen: set[bytes] = set()
        ids: set[bytes] = set()
        repeats: dict[bytes, int] = {}
        lines = pending = errors = 0
        plain: bool | None = None
        for number, identity in self._identities():
            lines += 1
            if identity.error is None and plain is None:
                plain = identity.plain
            if identity.custom_id is not None:
                self._check_unique(number, identity.custom_id, ids)
            elif identity.digest in seen:
                repeats[identity.digest] = repeats.get(identity.digest, 0) + 1
            else:
                seen.add(identity.digest)
            key = identity.key(repeats.get(identity.digest, 0))
            pending += key not in done
            errors += key in failed
        if not lines:
            raise InputFileError(f"input {self.path}", expected="at least one line", got="none")
        return InputScan(lines, pending, bool(plain), frozenset(repeats), errors)

    def read(self, scan: InputScan) -> Iterator[NumberedLine]:
        """Every line, in order."""
        counts = dict.fromkeys(scan.repeated, 0)
        for number, identity in self._identities():
            occurrence = 0
            if identity.custom_id is None and identity.digest in counts:
                occurrence = counts[identity.digest]
                counts[identity.digest] += 1
            if identity.error is not None:
                identity = replace(identity, plain=scan.plain)
            yield NumberedLine(number, identity, occurrence)

    def _check_unique(self, number: int, custom_id: str, ids: set[bytes]) -> None:
        name = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if name in ids:
            raise InputFileError(
                f"input {self.path}, line {number}: custom_id {custom_id[:80]!r} occurs twice",
                hint="make every custom_id unique",
            )
        ids.add(name)

    def _identities(self) -> Iterator[tuple[int, Identity]]:
        count = number = 0
        try:
            with self.path.open("rb") as file:
                while self._limit is None or count < self._limit:
                    self._faults("input.line")
                    raw, complete = _read_line(file)
                    number += 1
                    if not raw:
                        return
                    if number == 1:
                        raw = raw.removeprefix(b"\xef\xbb\xbf")
                    if not raw.strip():
                        continue
                    count += 1
                    yield number, identify(raw) if complete else _too_long(raw)
        except OSError as error:
            raise InputFileError(f"input {self.path}: {error.strerror}") from error


def _read_line(file: BinaryIO) -> tuple[bytes, bool]:
    """The next line and whether it is all there; the rest of a line too long is skipped."""
    raw = file.readline(LONGEST_LINE)
    complete = raw.endswith(b"\n") or len(raw) < LONGEST_LINE
    rest = b"" if complete else b"."
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(LONGEST_LINE)
    return raw, complete


def _too_long(raw: bytes) -> Identity:
    error = LineError(
        "line too long", code="invalid_line", expected=f"at most {LONGEST_LINE} bytes"
    )
    return Identity(hashlib.blake2b(raw, digest_size=16).digest(), plain=False, error=error)
