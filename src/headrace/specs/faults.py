"""Named points at which a test may make a run fail. Nothing happens at them by default.

Whoever passes a point calls ``faults(name)``; what that raises is what happened there. The
command line makes one from text (``cli/faults.py``), tests from anything callable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Faults = Callable[[str], None]
"""Called with the name of a point, from any thread."""

POINTS: Mapping[str, str] = {
    "start.model": "before the checkpoint is opened",
    "start.machine": "before this machine is measured",
    "start.plan": "a plan stands, not yet stored",
    "start.memory": "memory is mapped, before resident pages are read",
    "start.loaded": "resident pages are read, before the first sweep",
    "input.line": "before a line of the input is read",
    "page.read": "before a request is sent to the disk",
    "page.arrived": "the bytes of a request are in memory",
    "sweep.commit": "a sweep's tokens are drawn, not yet counted",
    "sweep.committed": "they are counted, nothing is written yet",
    "output.write": "before a group of lines is written",
    "output.chunk": "after each part of the group (64 KiB at most), not yet durable",
    "output.fsync": "all bytes are written, not yet durable",
    "output.durable": "the group is durable, not yet counted",
    "replace.write": "before a file that replaces another is written",
    "replace.fsync": "it is complete under its temporary name, not yet durable",
    "replace.rename": "durable under its temporary name, before it takes the old one's place",
    "replace.done": "in place; its name is not yet durable",
    "trace.write": "before the trace is written",
    "quantize.tensor": "before a tensor is read, rounded and written",
    "quantize.fsync": "all bytes of a shard are written, not yet durable",
    "quantize.rename": "durable under its temporary name",
    "quantize.renamed": "in place, not yet noted as done",
    "quantize.file": "before index, tokenizer, settings or config are written",
}
"""Name of a point -> when it is passed."""


def no_faults(point: str) -> None:
    """The default: nothing fails."""
