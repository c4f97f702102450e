"""The log beside the output of a long job: what was asked, planned, done, and when."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.cli.output import warn


@contextmanager
def log_beside(output: Path, keep: bool = True) -> Iterator[Path]:
    """While open, everything logged under ``headrace`` is appended to ``<output>.log``.

    Lines start with local time; several runs on one output follow each other in one file.
    With ``keep`` off there is no log: a dry run leaves nothing behind. A log that cannot be
    written (a full disk) costs a warning, never the job.
    """
    path = output.with_name(output.name + ".log")
    if not keep:
        yield path
        return
    handler = _Log(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("headrace")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield path
    except BaseException as error:
        logger.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


class _Log(logging.FileHandler):
    """A log file, opened at its first line, that says once when it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless one could not be written."""
        try:
            if not self._said:
                super().emit(record)
        except OSError:  # of opening; writing asks handleError
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say it once; the job goes on without a log."""
        if not self._said:
            self._said = True
            warn(f"no log: {self.baseFilename} cannot be written: {sys.exception()}")

    def close(self) -> None:
        """Close the file; what a full disk did not take is lost."""
        try:
            super().close()
        except OSError as error:
            warn(f"no log: {self.baseFilename} cannot be written: {error}")
