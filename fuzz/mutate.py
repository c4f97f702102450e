"""Structural mutations of JSON: mutated bytes rarely parse, mutated trees always do."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

_NUMBERS = (0, 1, -1, 2, 3, 8, 64, 255, 2**31, 2**53, 2**63 - 1, 2**63, 10**30, 10**400)
_FLOATS = (0.0, -0.5, 1e-300, 1e18, 1e300)
_TEXTS = (
    "",
    "x",
    "..",
    "../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "A" * 300,
    "1",
    "bf16",
    "BF16",
    "F4",
)
_TREES = ([], {}, [[]], [0, 0], [8, 8], {"a": {}}, [None] * 40)
INTERESTING: tuple[Any, ...] = (None, True, False, *_NUMBERS, *_FLOATS, *_TEXTS, *_TREES)


def mutate(data: bytes, random: Random) -> bytes | None:
    """``data`` with one to four changes of its tree; None when it is not JSON."""
    first, text = (data[:1], data[1:]) if data[:1] in (b"\0", b"\1") else (b"", data)
    try:
        tree = json.loads(text)
        for _ in range(random.choice((1, 1, 2, 4))):
            tree = _change(tree, random)
        return first + _spoilt(json.dumps(tree), random).encode()
    except (ValueError, RecursionError):
        return None


def _change(tree: Any, random: Random) -> Any:
    places = _places(tree)
    if not places:
        return deepcopy(random.choice(INTERESTING))
    parent, key = random.choice(places)
    value = parent[key]
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[_name(random, places)] = value
        case 1:
            parent.insert(0, value)
        case 2:
            other, name = random.choice(places)
            parent[key] = deepcopy(other[name])
        case 3 if type(value) is int:
            parent[key] = value + random.choice((-1, 1, 8, -8, value, 1 << random.randrange(70)))
        case 4 if isinstance(value, str) and value:
            at = random.randrange(len(value))
            parent[key] = value[:at] + random.choice(("", "x", "\0", ".", value)) + value[at + 1 :]
        case 5 if isinstance(parent, dict):
            parent[_name(random, places)] = deepcopy(random.choice(INTERESTING))
        case _:
            parent[key] = deepcopy(random.choice(INTERESTING))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below ``tree``, at most 2000."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree] if isinstance(tree, dict | list) else []
    while waiting and len(found) < 2000:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    return found


def _name(random: Random, places: list[tuple[Any, Any]]) -> str:
    names = [key for _, key in places if isinstance(key, str)]
    return (
        random.choice(names) if names and random.random() < 0.7 else random.choice(("a", "", "id"))
    )


def _spoilt(text: str, random: Random) -> str:
    """Now and then what ``json.dumps`` never writes: a key twice, NaN, deep nesting."""
    match random.randrange(40):
        case 0:
            return text.replace("null", "NaN", 1)
        case 1:
            return text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 2:
            return text.replace("null", "[" * 900 + "]" * 900, 1)
        case 3:
            return text.replace("0", "1e999", 1)
    return text
