"""YAML files that a command reads and writes: settings, plans, machines. Bounded and plain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import DocumentError

MOST_BYTES = 128 << 10
"""Largest plan or hardware file: the plan of the largest known model has a third of that."""

WIDTH = 100


def read_document(path: Path, most_bytes: int = MOST_BYTES) -> Mapping[str, Any]:
    """The mapping in a YAML file; an empty one is empty. Raises DocumentError when it cannot be
    read, is too large, is not YAML or not plain: anchors (a few lines of which stand for endless
    lists), tags and repeated keys are refused."""
    from headrace.cli.plain_yaml import NotPlainError, load_plain

    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes:
            raise DocumentError(f"{path} is too large", expected=f"at most {most_bytes} bytes")
        content = load_plain(text.decode("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, NotPlainError):
            raise DocumentError(f"{path} is not YAML", got=str(error)) from error
        raise DocumentError(f"cannot read {path}", got=_reason(error)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DocumentError(f"{path}", expected="a mapping", got=type(content).__name__)
    return content


def write_document(path: Path, content: Mapping[str, Any], comment: str) -> None:
    """Write ``content`` in its order, below ``comment``. Raises DocumentError."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    try:
        path.write_text(head + document_text(content), encoding="utf-8")
    except OSError as error:
        raise DocumentError(f"cannot write {path}", got=_reason(error)) from error


def document_text(content: Mapping[str, Any]) -> str:
    """YAML: sections below each other, a line for each of their fields, what is deeper in a row."""
    parts = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            parts.append(f"{key}:\n" + "".join(_field(k, v, "  ") for k, v in value.items()))
        elif isinstance(value, list) and value:
            parts.append(f"{key}:\n" + "".join(_lines("- ", _flow(v), "  ") for v in value))
        else:
            parts.append(_field(key, value, ""))
    return "".join(parts)


def _field(key: str, value: Any, indent: str) -> str:
    return _lines(f"{indent}{key}: ", _flow(value), indent + "  ")


def _lines(head: str, text: str, indent: str) -> str:
    first, *rest = text.splitlines()
    return "\n".join([head + first, *(indent + line.strip() for line in rest)]) + "\n"


def _flow(value: Any) -> str:
    """One value, in a row; long ones are folded, which YAML reads back as it was."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, width=WIDTH, default_flow_style=True)
    return str(text).removesuffix("...\n").rstrip("\n")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:200]
