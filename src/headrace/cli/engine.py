"""Open the engine for a command: check what can be checked before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from headrace.errors import UsageError
from headrace.specs.model import KV_FORMATS
from headrace.specs.policy import ACTIVATIONS, SCHEDULES
from headrace.specs.units import parse_size

if TYPE_CHECKING:
    from headrace.engine.llm import LLM


@contextmanager
def open_llm(
    model: str,
    *,
    memory: str | None,
    schedule: str | None,
    kv_dtype: str,
    revision: str | None = None,
    activations: str | None = None,
    **settings: Any,
) -> Iterator[LLM]:
    """The engine, closed on the way out. Raises UsageError or ModelError, cheap ones first."""
    budget = None if memory is None else parse_size(memory)
    if schedule is not None and schedule not in SCHEDULES:
        raise UsageError("--schedule", expected=" | ".join(SCHEDULES), got=schedule)
    if kv_dtype not in KV_FORMATS:
        raise UsageError("--kv-cache-dtype", expected=" | ".join(KV_FORMATS), got=kv_dtype)
    if activations not in (None, *ACTIVATIONS):
        raise UsageError("--activations", expected=" | ".join(ACTIVATIONS), got=activations)
    from headrace.engine.hub import local_folder

    folder = local_folder(model, revision)
    from headrace.engine.llm import LLM

    llm = LLM(
        folder,
        memory=budget,
        schedule=schedule,
        kv_dtype=kv_dtype,
        activations=activations,
        **settings,
    )
    with closing(llm):
        yield llm
