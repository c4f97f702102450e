"""What a batcher has done so far, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Totals over committed sweeps. ``recomputed_tokens`` are prefill rows done twice,
    ``prompt_tokens`` those of prompts that were done once."""

    sweeps: int = 0
    prefill_tokens: int = 0
    prompt_tokens: int = 0
    recomputed_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    aborted: int = 0

    def copy(self) -> Counters:
        """These numbers as they are now."""
        return Counters(**asdict(self))

    def since(self, before: Counters) -> Counters:
        """What was added after ``before``."""
        then = asdict(before)
        return Counters(**{name: count - then[name] for name, count in asdict(self).items()})
