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
    from headrace.planner.profile import Profile


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
        profile=_profile(),
        **settings,
    )
    with closing(llm):
        yield llm


def _profile() -> Profile | None:
    """This machine's profile; a damaged one, or another machine's, costs a warning."""
    import os

    from headrace.cli.output import warn
    from headrace.engine.profiles import profile_path, read_profile

    try:
        return read_profile(profile_path(os.environ))
    except UsageError as error:
        warn(f"{error.message}; the machine is measured instead ({error.hint})")
        return None
