"""Where a setting comes from: command line > HEADRACE_* > ``--config FILE`` > default.

A configuration file is YAML. Keys are long option names (``max-num-seqs`` or
``max_num_seqs``); at the top they hold for every command that has the option, in a section
named after a command for that command only::

    memory: 8GiB
    run-batch:
      max-tokens: 256
    bench:
      throughput: {batch: 64}

An unknown key is an error: a setting that cannot be honoured is never dropped in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.cli.documents import read_document
from headrace.errors import UsageError

PREFIX = "HEADRACE_"

MAX_CONFIG_BYTES = 16 << 10
"""Largest configuration file; one with every option of every command has about 4 kilobytes."""


def load_config(ctx: Any, value: Path | None) -> Path | None:
    """Eager callback of ``--config``: give the file's values to the command as defaults.

    Click reads them after the command line and the environment. Raises UsageError.
    """
    if value is None or ctx.resilient_parsing:
        return value
    path = _command_path(ctx)
    defaults = settings_for(path, read_config(value), ctx.find_root().command, str(value))
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


def read_config(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file. Raises UsageError when it is not one, or not plain."""
    return read_document(path, MAX_CONFIG_BYTES)


def settings_for(
    path: tuple[str, ...], content: Mapping[str, Any], root: Any, source: str
) -> dict[str, Any]:
    """Parameter name -> value for the command at ``path`` (such as ``("bench", "throughput")``).

    Sections closer to the command win. All of ``content`` is checked, sections of other
    commands included. Raises UsageError naming the key.
    """
    _check(content, root, (), source)
    names = {key_of(p): p for p in _leaf(root, path).params}
    values: dict[str, Any] = {}
    section: Any = content
    for step in (*path, None):
        for key, value in section.items():
            parameter = names.get(_normal(key))
            if parameter is not None and not isinstance(value, dict) and value is not None:
                values[parameter.name] = _as_typed(value)
        section = section.get(step) or {}
    return values


def bind_environment(root: Any) -> None:
    """Let ``HEADRACE_<OPTION>`` set every parameter of every command below ``root``."""
    for command in leaves(root):
        for parameter in command.params:
            if key_of(parameter) != "help":
                parameter.envvar = environment_name(parameter)
                parameter.show_envvar = False  # the app's own help tells the rule


def unknown_variables(root: Any, environment: Mapping[str, str]) -> list[str]:
    """HEADRACE_* variables that no command reads: probably misspelt."""
    known = {environment_name(p) for command in leaves(root) for p in command.params}
    return sorted(v for v in environment if v.startswith(PREFIX) and v not in known)


def environment_name(parameter: Any) -> str:
    """``HEADRACE_MAX_NUM_SEQS`` for ``--max-num-seqs``."""
    return PREFIX + key_of(parameter).upper().replace("-", "_")


def key_of(parameter: Any) -> str:
    """What a parameter is called in files: its long option, or its name when an argument."""
    long = [o.lstrip("-") for o in parameter.opts if o.startswith("--")]
    return long[0] if long else parameter.name.replace("_", "-")


def leaves(command: Any) -> Iterator[Any]:
    """The commands below a group (or the command itself)."""
    children = getattr(command, "commands", None)
    if children is None:
        yield command
    else:
        for child in children.values():
            yield from leaves(child)


def _check(content: Mapping[str, Any], command: Any, path: tuple[str, ...], source: str) -> None:
    known = {key_of(p) for leaf in leaves(command) for p in leaf.params} - {"config", "help"}
    children = getattr(command, "commands", {})
    for key, value in content.items():
        where = " > ".join((*path, str(key)))
        if key in children and isinstance(value, dict):
            _check(value, children[key], (*path, key), source)
        elif isinstance(value, dict):
            raise UsageError(
                f"{source}: {where} is not a command",
                expected=", ".join(children) or "an option and its value",
            )
        elif _normal(key) not in known:
            close = difflib.get_close_matches(_normal(key), known, 1)
            raise UsageError(
                f"{source}: unknown key {where!r}",
                hint=close[0] if close else "`headrace COMMAND --help` lists the options",
            )


def _normal(key: object) -> str:
    return str(key).replace("_", "-")


def _as_typed(value: Any) -> Any:
    """As the command line would have given it: text, or a bool for a flag."""
    if isinstance(value, list):
        return [_as_typed(v) for v in value]
    return value if isinstance(value, bool) else str(value)


def _leaf(root: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        root = root.commands[step]
    return root


def _command_path(ctx: Any) -> tuple[str, ...]:
    names: list[str] = []
    while ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return tuple(reversed(names))
