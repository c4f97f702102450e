"""A checkpoint's chat template, rendered where it can do no harm: see ``template_worker``."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.engine import template_worker as worker
from headrace.errors import CheckpointError, ParameterError, UnsupportedModelError

_PROBE = [{"role": "user", "content": "hello"}]


class ChatTemplate:
    """Renders conversations with one template, in a process that starts when first needed.

    Starting takes about 0.1 s and rendering 0.1 ms; the process holds about 15 MB. May be used
    from several threads.
    """

    def __init__(self, source: str, variables: Mapping[str, str], name: str) -> None:
        """``variables`` are the special tokens; ``name`` stands for the checkpoint in errors."""
        self._first = {"template": source, "variables": dict(variables)}
        self._name = name
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._close: Any = None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation, up to where the answer begins.

        Raises ParameterError when the template refuses these messages or goes too far with
        them, CheckpointError when it is no template, UnsupportedModelError when it goes too far
        with the simplest conversation. The template can be used again after any of these.
        """
        try:
            request = json.dumps([dict(m) for m in messages]).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ParameterError("messages must be plain data", got=str(error)[:200]) from None
        with self._lock:
            if self._process is None:
                self._start()
            reply = self._ask(request)
        if reply is None:
            raise ParameterError(f"the chat template goes too far with these messages; {_LIMITS}")
        if "error" in reply:
            raise ParameterError(f"the chat template refuses the messages: {reply['error']}")
        return str(reply["text"])

    def close(self) -> None:
        """End the process, if there is one. Idempotent."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._close = weakref.finalize(self, _end, self._process)
        reply = self._ask(json.dumps(self._first).encode())
        if reply is not None and "error" in reply:
            self._stop()
            raise CheckpointError(
                f"the chat template of {self._name} is not usable", got=reply["error"]
            )
        if reply is None or self._ask(json.dumps(_PROBE).encode()) is None:
            raise UnsupportedModelError(
                f"the chat template of {self._name} goes too far",
                expected=_LIMITS,
                hint="send 'prompt' instead of 'messages', or repair the template",
            )

    def _ask(self, request: bytes) -> dict[str, Any] | None:
        """The answer; None when the process ended instead of giving one."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # Ctrl-C: half an exchange must not answer the next one
            self._stop()
            raise
        if not line.endswith(b"\n"):
            process.wait()
            self._stop()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stop(self) -> None:
        if self._close is not None:
            self._close()
        self._process = self._close = None


_LIMITS = (
    f"at most {worker.SECONDS:g} s of processor time, {worker.MEMORY_BYTES >> 20} MiB and "
    f"{worker.MAX_CHARACTERS >> 20} Mi characters"
)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet has nowhere to go
                pipe.close()
    process.wait()
