"""Every way Headrace refuses or fails. Messages say: expected, got, what to try.

::

    HeadraceError                  exit 1   anything below
    |-- UsageError                 exit 2   a flag, parameter or setting that cannot be honoured
    |   |-- BudgetError            exit 2   the memory budget is too small; says which is not
    |   |-- DocumentError          exit 2   a plan or hardware file that cannot be used
    |   `-- ParameterError         exit 2   a sampling parameter out of range
    |-- ModelError                 exit 2   the model cannot be used
    |   |-- UnsupportedModelError  exit 2   an architecture, feature or format we do not run
    |   `-- CheckpointError        exit 2   files missing, inconsistent, truncated or malformed
    |-- JobError                   exit 2   a batch file or its output cannot be used
    |   |-- InputFileError         exit 2   unreadable, empty, duplicate custom_id
    |   |-- SignatureError         exit 2   the output was written by a different run
    |   `-- LockedError            exit 2   another run holds the output
    |-- LineError                  exit 1   one line of a batch file; costs that line only
    |-- ScheduleError              exit 1   a schedule that breaks its own rules (our bug)
    |-- TaskError                  exit 1   a task's body raised; names the task and the sweep
    |-- NumericsError              exit 1   NaN or infinity in logits; costs that request only
    `-- StorageError               exit 1   reading weights or writing results failed
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of every error that Headrace raises on purpose.

    ``expected``, ``got`` and ``hint`` (what to try) are kept apart so that programs can
    read them; ``str()`` joins them into one message.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        expected: object | None = None,
        got: object | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.expected = expected
        self.got = got
        self.hint = hint
        parts = [message]
        if expected is not None:
            parts.append(f"expected: {expected}")
        if got is not None:
            parts.append(f"got: {got}")
        if hint is not None:
            parts.append(f"try: {hint}")
        super().__init__("; ".join(parts))


class UsageError(HeadraceError):
    """A flag, parameter or environment value that cannot be honoured."""

    exit_code = 2


class BudgetError(UsageError):
    """The memory budget cannot work. ``smallest_bytes`` is the smallest one that can."""

    def __init__(self, message: str, *, smallest_bytes: int, **details: object) -> None:
        self.smallest_bytes = smallest_bytes
        super().__init__(message, **details)  # type: ignore[arg-type]


class DocumentError(UsageError):
    """A plan or hardware file is malformed, out of range, or not for this model or machine."""


class ParameterError(UsageError):
    """A sampling parameter out of range."""


class ModelError(HeadraceError):
    """The model cannot be used."""

    exit_code = 2


class UnsupportedModelError(ModelError):
    """An architecture, feature or format that Headrace does not run."""


class CheckpointError(ModelError):
    """Checkpoint files are missing, inconsistent, truncated or malformed."""


class JobError(HeadraceError):
    """A batch file or its output cannot be used."""

    exit_code = 2


class InputFileError(JobError):
    """The batch input is unreadable, empty, or repeats a custom_id."""


class SignatureError(JobError):
    """The existing output was written by a run with other weights, tokenizer or seed."""


class LockedError(JobError):
    """Another run holds the output file."""


class LineError(HeadraceError):
    """One line of a batch file is at fault; it costs that line only. ``code`` is stable."""

    def __init__(self, message: str, *, code: str = "invalid_request", **details: object) -> None:
        self.code = code
        super().__init__(message, **details)  # type: ignore[arg-type]


class ScheduleError(HeadraceError):
    """A schedule breaks its own rules: our bug, not the user's."""


class TaskError(HeadraceError):
    """A task's body raised. ``task`` and ``sweep`` name it; ``__cause__`` is the original."""

    def __init__(self, message: str, *, task: object, sweep: int, **details: object) -> None:
        self.task = task
        self.sweep = sweep
        super().__init__(message, **details)  # type: ignore[arg-type]


class NumericsError(HeadraceError):
    """The logits of a request hold NaN or infinity; it costs that request only."""


class StorageError(HeadraceError):
    """Reading weights or writing results failed (EIO, a short read, a full disk)."""
