"""Start-up time: commands that do not pay for what they do not use.

Typer (0.29) converts every value with a pydantic adapter, and importing pydantic alone takes
80 ms, a third of what ``inspect`` may take. A value that is the declared default, or text where
text is declared, needs no conversion. A Typer that works otherwise is left alone.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose parameters are converted only where there is something to convert."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, ``--help`` included."""
        return [_lean(p) for p in super().get_params(ctx)]


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, ``--help`` included."""
        return [_lean(p) for p in super().get_params(ctx)]


def _lean(parameter: Any) -> Any:
    """``parameter`` itself, its conversion put behind a check. Idempotent."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if annotation is None or "process_value" in vars(parameter):
        return parameter
    convert = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        as_declared = value is parameter.default or type(value) is annotation is str
        if not as_declared or (value is None and parameter.required):
            return convert(ctx, value)
        return value if parameter.callback is None else parameter.callback(ctx, parameter, value)

    parameter.process_value = process_value
    return parameter
