"""Renders one chat template in a process of its own, which the kernel stops when it goes too far.

A template is a program from a stranger. Jinja's sandbox keeps it from files and from Python's
inside, but not from ``{% for i in range(99999) %}`` ten levels deep or ``'x' * 10**10``. So it
runs here: a process without files to write, with an address space of MEMORY_BYTES, and with
SECONDS of processor time for each conversation (a busy machine costs it nothing); when they
are over, the kernel ends the process, inside C code too.

Protocol, a line of JSON each way: first {"template", "variables"} -> {"ready"} or {"error"},
then a list of messages -> {"text"} or {"error"}. The end of stdin ends the process. Run as a
script: it imports jinja2 and nothing of Headrace. How a template is rendered (trimmed blocks,
loop controls, ``raise_exception``, ``strftime_now``, ``tojson``, ``generation`` blocks) is what
https://huggingface.co/docs/transformers/chat_templating_writing promises its author.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 0.8
"""Processor time for one conversation; published templates take a millisecond."""

MEMORY_BYTES = 256 << 20
"""Address space of the process, about 40 MB of which are the interpreter's."""

MAX_CHARACTERS = 16 << 20
"""Longest text that a template may make: more tokens than any context holds."""


class TooLongError(Exception):
    """The template made more text than MAX_CHARACTERS."""


def main() -> None:
    """Serve stdin until it ends."""
    _confine()
    first = json.loads(sys.stdin.buffer.readline())
    reply, render = _limited(lambda: _compiled(first["template"], first["variables"]))
    _answer(reply if render is None else {"ready": True})
    while render is not None and (line := sys.stdin.buffer.readline()):
        reply, text = _limited(lambda: render(json.loads(line)))
        _answer(reply if text is None else {"text": text})


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the pipe


def _limited(work: Callable[[], Any]) -> tuple[dict[str, str], Any]:
    """(what to answer when it failed, result or None) of ``work`` within the time."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return {}, work()
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB"}, None
    except TooLongError:
        return {"error": f"it makes more than {MAX_CHARACTERS} characters"}, None
    except Exception as error:  # template code may raise anything
        return {"error": f"{type(error).__name__}: {error}"[:500]}, None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(reply: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def _compiled(source: str, variables: Mapping[str, str]) -> Callable[[list[Any]], str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = time.strftime
    template = environment.from_string(source)

    def render(messages: list[Any]) -> str:
        pieces, count = [], 0
        for piece in template.generate(
            **variables,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
        ):
            count += len(piece)
            if count > MAX_CHARACTERS:
                raise TooLongError
            pieces.append(piece)
        return "".join(pieces)

    return render


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training; here it is just text."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements of the block, in its place."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


if __name__ == "__main__":
    main()
