"""A durable batch job: an input file, an output file, and what is left to do between them.

::

    with Job.open("in.jsonl", "out.jsonl", signature) as job:
        for line in job:                       # pending lines, read lazily
            ...
            job.write([(line, output), ...])   # durable when it returns

A line counts as done when its output line is durable, and never before. A job that was killed
anywhere goes on where it stopped: lines are recognised by their keys, not by their numbers.
Lines at fault are answered with error lines by the job itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from headrace.engine.bodies import answer_line, error_line
from headrace.engine.durable import DurableLog
from headrace.engine.inputs import BatchInput, InputScan
from headrace.engine.lines import BadLine, JobLine, LineParser
from headrace.engine.outputs import RequestOutput
from headrace.engine.recovery import Recovered, keep_answered, recover
from headrace.engine.sidecar import Sidecar, Signature
from headrace.errors import HeadraceError, InputFileError
from headrace.specs.faults import Faults, no_faults

BAD_GROUP = 256
"""Lines at fault that wait for each other before they are written."""

Result = tuple[JobLine, RequestOutput | HeadraceError]
"""A line and its answer, or the error that it failed with."""


class Job:
    """One input and one output, locked. Counters cover the lines of this input (and limit):

    ``total`` lines, ``done`` of them have a durable output line, ``failed`` of those are errors (of
    earlier runs too). ``plan`` is what an earlier run stored, None if nothing.
    """

    def __init__(
        self,
        source: BatchInput,
        log: DurableLog,
        sidecar: Sidecar,
        parser: LineParser,
        model: str,
        now: Callable[[], float],
    ) -> None:
        """Use :meth:`open`."""
        self._source = source
        self._log = log
        self._sidecar = sidecar
        self._parser = parser
        self._model = model
        self._now = now
        self._done: set[str] = set()
        self._bad: list[BadLine] = []
        self._writing: _Group | None = None
        self._scan = InputScan(0, 0, False, frozenset())
        self._signature: Signature = {}
        self.total = self.done = self.failed = 0

    @classmethod
    def open(
        cls,
        input: str | Path,
        output: str | Path,
        signature: Signature,
        *,
        limit: int | None = None,
        retry_errors: bool = False,
        fresh: bool = False,
        defaults: Mapping[str, Any] | None = None,
        model: str = "",
        model_names: Collection[str] | None = None,
        now: Callable[[], float] = lambda: 0.0,
        faults: Faults = no_faults,
    ) -> Job:
        """Check both files, lock the output and find what is left to do.

        ``limit`` takes only the first lines of the input. ``retry_errors`` drops error lines,
        so that their requests are pending again. ``fresh`` drops everything written before.
        ``defaults`` are sampling parameters where a line is silent; ``model`` is the name in
        the answers; ``model_names``, unless None, are those that lines may ask for; ``now``
        gives Unix seconds for ``created``.

        Raises InputFileError (input unreadable, empty, or a custom_id twice), LockedError,
        SignatureError (the output belongs to a different run), JobError (output unusable).
        """
        input, output = Path(input), Path(output)
        source = BatchInput(input, limit, faults)
        if output.exists() and output.samefile(input):
            raise InputFileError("input and output are the same file", got=output)
        log = DurableLog(output, faults)
        parser = LineParser(dict(defaults or {}), model_names)
        job = cls(source, log, Sidecar(output, faults), parser, model, now)
        try:
            job._prepare(signature, retry_errors, fresh)
        except BaseException:
            log.close(remove_empty=True)
            raise
        return job

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the output. Lines not written stay pending for the next run."""
        if self._log.unused:
            self._sidecar.remove()
        self._log.close(remove_empty=True)

    @property
    def pending(self) -> int:
        """Lines left to do, those at fault included."""
        return self.total - self.done

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """The plan stored with the output."""
        return self._sidecar.plan

    def store_plan(self, plan: Mapping[str, Any]) -> None:
        """Keep the plan beside the output, for reuse."""
        self._sidecar.write(self._signature, plan)

    def __iter__(self) -> Iterator[JobLine]:
        """Pending lines in input order; lines at fault are written as errors on the way.

        A line that was handed out but not written is handed out again by a new iteration.
        """
        for line in self.scan():
            if isinstance(line, JobLine):
                yield line
                continue
            self._bad.append(line)
            if len(self._bad) >= BAD_GROUP:
                self.write(())
        self.write(())

    def scan(self) -> Iterator[JobLine | BadLine]:
        """Pending lines in input order, nothing written: for plans and dry runs."""
        for numbered in self._source.read(self._scan):
            if numbered.key not in self._done:
                yield self._parser.parse(numbered.identity, numbered.number, numbered.occurrence)

    def write(self, results: Sequence[Result]) -> None:
        """Append a group of finished lines; they are durable and counted when this returns.

        Raises StorageError when they could not be made durable: none of them counts then.
        """
        self._count_durable()
        created = int(self._now())
        records = {bad.key: error_line(bad, bad.error) for bad in self._bad}
        for line, result in results:
            records[line.key] = (
                error_line(line, result)
                if isinstance(result, HeadraceError)
                else answer_line(line, result, self._model, created)
            )
        fresh = {key: record for key, record in records.items() if key not in self._done}
        if not fresh:
            return
        data = b"".join(_encode(record) for record in fresh.values())
        failed = sum(record["error"] is not None for record in fresh.values())
        self._writing = _Group(self._log.size + len(data), fresh.keys(), failed)
        self._log.append(data)
        self._count_durable()

    def _count_durable(self) -> None:
        """Count the group that was last written, if it is durable. Ctrl-C may have come between;
        written again then, its lines would stand in the output twice."""
        group = self._writing
        if group is not None and self._log.size == group.end and group.keys - self._done:
            new = len(group.keys - self._done)
            self._done.update(group.keys)  # first, and the group is forgotten last
            self._bad = [bad for bad in self._bad if bad.key not in group.keys]
            self.done += new
            self.failed += group.failed
        self._writing = None

    def _prepare(self, signature: Signature, retry_errors: bool, fresh: bool) -> None:
        """Check everything first; only then drop what is to be written again."""
        self._signature = signature
        found = Recovered() if fresh else self._recover(signature)
        dropped = found.failed if retry_errors else set()
        self._done = found.answered | (found.failed - dropped)
        self._scan = self._source.scan(self._done, found.failed - dropped)
        if fresh:
            self._log.truncate(0)
            self._sidecar.remove()
        if dropped:
            self._log.rewrite(keep_answered(self._log))
        if self._sidecar.signature != dict(signature):
            self._sidecar.write(signature, None)
        self.total = self._scan.lines
        self.done = self.total - self._scan.pending
        self.failed = self._scan.failed

    def _recover(self, signature: Signature) -> Recovered:
        self._sidecar.read()
        found = recover(self._log)
        if found.answered or found.failed:
            self._sidecar.check(signature)
        return found


class _Group(NamedTuple):
    """Lines on their way into the output, whose size they make ``end``."""

    end: int
    keys: Set[str]
    failed: int


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
