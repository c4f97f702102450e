"""The log beside the output of a long job: what was asked, planned, done, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import UsageError


@contextmanager
def log_beside(output: Path, keep: bool = True) -> Iterator[Path]:
    """While open, everything logged under ``headrace`` is appended to ``<output>.log``.

    Lines start with local time; several runs on one output follow each other in one file.
    With ``keep`` off there is no log: a dry run leaves nothing behind. Raises UsageError when
    the log cannot be written.
    """
    path = output.with_name(output.name + ".log")
    if not keep:
        yield path
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError("cannot write the log beside the output", got=str(error)) from error
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
