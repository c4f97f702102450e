"""The part of a policy that the batcher obeys."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UsageError
from headrace.specs.policy import Policy


@dataclass(frozen=True)
class Limits:
    """At most ``max_rows`` rows and ``max_seqs`` sequences in a sweep, ``mu`` rows in each of
    ``micro_batches``; prefill up to ``compute_rows`` rows in all, or one ``chunk`` if that is
    more; ``kv_blocks`` blocks of ``kv_block`` tokens.

    ``spread`` fills all micro-batches evenly, for schedules that overlap them. Else each one
    only bounds memory and costs a pass over the weights of attention: as few as hold the rows
    are used."""

    max_rows: int
    max_seqs: int
    kv_blocks: int
    kv_block: int = 16
    micro_batches: int = 1
    chunk: int = 64
    compute_rows: int = 1 << 30
    spread: bool = False

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_seqs", "kv_blocks", "kv_block", "micro_batches", "chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"batch {name}", expected="at least 1", got=getattr(self, name))
        if self.max_seqs > self.max_rows:
            raise UsageError("max_seqs", expected=f"<= {self.max_rows} rows", got=self.max_seqs)

    @property
    def mu(self) -> int:
        """Most rows of one micro-batch."""
        return -(-self.max_rows // self.micro_batches)

    def prefill_rows(self, decodes: int) -> int:
        """Most prompt rows of a sweep beside ``decodes``."""
        wanted = max(self.compute_rows - decodes, self.chunk)
        return min(wanted, self.max_rows - decodes)

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """The limits that ``policy`` sets."""
        return cls(
            max_rows=policy.max_rows,
            max_seqs=policy.max_seqs,
            kv_blocks=policy.kv_blocks,
            kv_block=policy.kv_block,
            micro_batches=policy.micro_batches,
            chunk=policy.chunk,
            compute_rows=policy.compute_rows,
            spread=policy.on_device,
        )
