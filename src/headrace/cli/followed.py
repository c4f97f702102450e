"""``run-batch --plan FILE``: settings that a plan fixes, and flags that may not stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.cli.documents import read_document
from headrace.cli.hardware_source import usable_cores
from headrace.errors import DocumentError, UsageError
from headrace.planner.plan_file import PlanFile, read_plan

FLAGS: Mapping[str, tuple[str, Any]] = {
    "schedule": ("--schedule", None),
    "kv_dtype": ("--kv-cache-dtype", "f16"),
    "max_seqs": ("--max-num-seqs", None),
    "max_rows": ("--max-num-batched-tokens", None),
    "threads": ("--threads", None),
    "kernels": ("--kernels", "auto"),
    "activations": ("--activations", None),
}
"""Setting -> its flag and default: what a plan decides as well."""


def read_plan_file(path: Path) -> PlanFile:
    """The plan in a YAML file, checked. Raises DocumentError, for the schedules of accelerators
    too: nothing here executes them."""
    plan = read_plan(read_document(path), path.name)
    if plan.policy.on_device:
        raise DocumentError(
            f"{path.name} computes on an accelerator ({plan.policy.schedule})",
            expected="compute: host",
            got="compute: device",
            hint="no machine of this version runs it; plan for this one: --hardware auto",
        )
    return plan


def settings_of(plan: PlanFile, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the engine under ``plan``. Raises UsageError for a flag that says otherwise."""
    policy = plan.policy
    fixed: dict[str, Any] = {
        "schedule": None,  # not planned with: the policy holds it
        "kv_dtype": policy.kv_dtype,
        "max_seqs": None,
        "max_rows": None,
        "threads": plan.threads(usable_cores(), name),
        "kernels": policy.kernels,
        "activations": None if policy.activations == "int8" else policy.activations,
    }
    for setting, (flag, default) in FLAGS.items():
        if given[setting] != default:
            raise UsageError(
                f"{flag} beside --plan", expected="one of the two", got=given[setting],
                hint=f"edit {name}, or plan again with {flag}",
            )  # fmt: skip
    return fixed
