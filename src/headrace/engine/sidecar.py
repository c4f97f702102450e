"""The small file beside an output that says which run writes it, and by which plan.

``results.jsonl`` has ``results.jsonl.headrace.json``: {"format", "signature", "plan"}. The
signature must match to resume; the plan is kept for reuse and is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.engine.durable import sync_folder, write_durably
from headrace.errors import SignatureError
from headrace.specs.faults import Faults, no_faults

FORMAT = 1

MOST_BYTES = 64 << 20
"""A larger sidecar is none of ours: a plan lists page ids, of which there are thousands."""

Signature = Mapping[str, str | int | float | bool | None]
"""What decides the answers, part by part: weights, tokenizer, template, seed, ..."""


class Sidecar:
    """Reads and writes the sidecar of one output, all or nothing."""

    def __init__(self, output: Path, faults: Faults = no_faults) -> None:
        self.path = output.with_name(output.name + ".headrace.json")
        self._faults = faults
        self.signature: dict[str, Any] | None = None
        self.plan: dict[str, Any] | None = None

    def read(self) -> None:
        """Load what is there, if anything. Raises SignatureError when it is not readable."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._damaged(str(error)) from error
        try:
            self.signature, self.plan = _checked(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}"[:300]) from error

    def check(self, signature: Signature) -> None:
        """Raise SignatureError, naming the parts, unless the stored signature is this one."""
        if self.signature is None:
            raise SignatureError(
                f"the output has lines but no {self.path.name} beside it",
                hint="name another output, or start over with --fresh",
            )
        names = sorted(self.signature.keys() | signature.keys())
        other = [n for n in names if self.signature.get(n) != signature.get(n)]
        if other:
            raise SignatureError(
                f"the output was written by a different run; these differ: {', '.join(other)}",
                expected=", ".join(f"{n}={self.signature.get(n)}" for n in other),
                got=", ".join(f"{n}={signature.get(n)}" for n in other),
                hint="name another output, or start over with --fresh",
            )

    def write(self, signature: Signature, plan: Mapping[str, Any] | None) -> None:
        """Store both, durably."""
        content = {"format": FORMAT, "signature": dict(signature), "plan": plan}
        write_durably(self.path, json.dumps(content, indent=1).encode() + b"\n", self._faults)
        self.signature, self.plan = dict(signature), dict(plan) if plan is not None else None

    def remove(self) -> None:
        """Forget the run."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        self.signature = self.plan = None

    def _damaged(self, reason: str) -> SignatureError:
        return SignatureError(
            f"{self.path.name} cannot be read: {reason}",
            hint="name another output, or start over with --fresh",
        )


def _checked(data: bytes) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(signature, plan) of a sidecar, which anybody may have written. Raises ValueError and its
    kin; what the plan holds is checked by who uses it."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    content = json.loads(data.decode("utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
    signature, plan = content["signature"], content["plan"]
    if not isinstance(signature, dict) or not isinstance(plan, dict | None):
        raise ValueError("signature and plan must be objects")
    return signature, plan
