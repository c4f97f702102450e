"""How many prompt tokens repeat the beginning of an earlier prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def prefix_tokens_shared(prompts: Iterable[Sequence[int]], block: int = 16) -> int:
    """Tokens in whole leading blocks that some earlier prompt begins with, too.

    This is what a prefix cache of ``block`` tokens could reuse. Keeps one hash per distinct
    block of prefix, not the prompts.
    """
    seen: set[int] = set()
    shared = 0
    for prompt in prompts:
        prefix = 0
        known = True
        for start in range(0, len(prompt) - block + 1, block):
            prefix = hash((prefix, tuple(prompt[start : start + block])))
            known = known and prefix in seen
            shared += block if known else 0
            seen.add(prefix)
    return shared
