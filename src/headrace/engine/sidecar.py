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
from headrace.engine.faultpoints import Faults, no_faults
from headrace.errors import SignatureError

FORMAT = 1

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
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise self._damaged(f"format {content['format']}")
            self.signature, self.plan = dict(content["signature"]), content["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

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
