"""Printing: results on stdout, everything said to a person on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from headrace.errors import HeadraceError, StorageError

if TYPE_CHECKING:
    from rich.console import Console


def emit_json(payload: Mapping[str, Any] | Sequence[Any], stream: IO[str] | None = None) -> None:
    """One JSON object or list, then a newline, on stdout. Infinities and NaN become null.

    Raises BrokenPipeError when nobody reads it, StorageError when it cannot be written."""
    text = json.dumps(_finite(payload), indent=2, ensure_ascii=False, allow_nan=False)
    with _storing():
        print(text, file=stream or sys.stdout)


def flush_results() -> None:
    """Push out what was printed. Raises as ``emit_json``."""
    with _storing():
        sys.stdout.flush()


def discard_results() -> None:
    """Send what is still to be printed nowhere: the interpreter would complain about it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    """A rich console; plain text when not a terminal or under NO_COLOR (rich's own rule)."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _width(), highlight=False)


def warn(text: str) -> None:
    """A line for the person at the terminal."""
    print(f"headrace: {text}", file=sys.stderr)


def show_error(error: HeadraceError, *, as_json: bool = False, verbose: bool = False) -> None:
    """Say what was expected, got, and what to try; as JSON on stdout when that was asked for."""
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    if as_json:
        with contextlib.suppress(StorageError):  # stderr says it as well
            emit_json({"error": error_dict(error)})
    print(f"error: {error.message}", file=sys.stderr)
    for name, value in (("expected", error.expected), ("got", error.got), ("try", error.hint)):
        if value is not None:
            print(f"  {name}: {value}", file=sys.stderr)


def error_dict(error: HeadraceError) -> dict[str, Any]:
    """The error's parts, for programs."""
    parts: dict[str, Any] = {"type": type(error).__name__, "message": error.message}
    for name in ("expected", "got", "hint"):
        value = getattr(error, name)
        parts[name] = None if value is None else str(value)
    smallest = getattr(error, "smallest_bytes", None)
    return parts if smallest is None else {**parts, "smallest_bytes": smallest}


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            f"standard output cannot be written: {error.strerror or error}"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def _width() -> int:
    """Tables in files and pipes are not squeezed into the 80 columns of a missing terminal."""
    text = os.environ.get("COLUMNS", "")
    width = int(text) if text.isdecimal() and len(text) < 10 else 0
    return min(max(width, 40), 1000) if width else 110
