"""The part of YAML that a configuration needs: scalars, lists and mappings, written out.

Everything that makes YAML dangerous or surprising is refused: anchors (a few lines of them
expand to billions of values), tags of types, repeated keys, nesting that exhausts the stack.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

MAX_DEPTH = 16
LONGEST_NUMBER = 40


class NotPlainError(ValueError):
    """The text is not YAML, or not plain."""


def load_plain(text: str) -> Any:
    """The value that ``text`` stands for. Raises NotPlainError.

    Costs about 10 microseconds a byte (PyYAML is Python): bound the text first.
    """
    import yaml

    if _open_brackets(text) > 4 * MAX_DEPTH:  # each costs the scanner as much as all before it
        raise NotPlainError(_TOO_DEEP)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, set(), 0)
        return loader.construct_document(node)
    except NotPlainError:
        raise
    except yaml.YAMLError as error:
        raise NotPlainError(" ".join(str(error).split())[:300]) from None
    except RecursionError:
        raise NotPlainError(_TOO_DEEP) from None
    except (ValueError, OverflowError) as error:  # a date or a number that Python cannot hold
        raise NotPlainError(str(error)[:300]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _open_brackets(text: str) -> int:
    """Most brackets open at any place, those inside quotes counted too."""
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    return max(accumulate(steps, initial=0))


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def _check(node: Any, seen: set[int], depth: int) -> None:
    """Refuse what is not plain in a tree of nodes, before values are made of it."""
    if depth > MAX_DEPTH:
        raise NotPlainError(_TOO_DEEP)
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise NotPlainError(f"anchors are not read (line {line})")
    seen.add(id(node))
    if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
        raise NotPlainError(f"a number of more than {LONGEST_NUMBER} characters (line {line})")
    children = node.value if isinstance(node.value, list) else []
    if children and isinstance(children[0], tuple):  # a mapping
        keys = [key.value for key, _ in children if isinstance(key.value, str)]
        if len(set(keys)) < len(children):
            raise NotPlainError(f"a key stands twice, or is no text (mapping of line {line})")
        children = [part for pair in children for part in pair]
    for child in children:
        _check(child, seen, depth + 1)
