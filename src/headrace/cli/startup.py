"""Start-up time: do not pay for what a command does not use."""

from __future__ import annotations

from typing import Any


def skip_needless_coercion(parameter: Any) -> None:
    """Take a value that has the declared type already, or none, as it is.

    Typer (0.29) converts every value with a pydantic adapter, and importing pydantic costs
    80 ms, a third of what ``inspect`` may take. Anything that needs conversion or a check still
    goes that way; a Typer that works otherwise is left alone.
    """
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if annotation is None:
        return
    convert = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        as_declared = value is parameter.default or type(value) is annotation is str
        if not as_declared or (value is None and parameter.required):
            return convert(ctx, value)
        return value if parameter.callback is None else parameter.callback(ctx, parameter, value)

    parameter.process_value = process_value
