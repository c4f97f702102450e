"""A plan as a file: written by ``plan -o``, run verbatim by ``run-batch --plan``.

A plan file is data that anybody may have edited. Every field is checked for type and range, and
the policy for being one that this model's memory and this machine can honour, before anything of
its size is allocated. What cannot be honoured is refused, never adjusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from headrace.batching.blocks import blocks_for
from headrace.errors import DocumentError, HeadraceError
from headrace.planner.candidates import LEAST_SLOTS, Situation
from headrace.planner.fields import known_fields, number, switch, text, whole
from headrace.planner.hardware_file import hardware_document
from headrace.planner.page_sets import compact, expand
from headrace.planner.plan import Plan
from headrace.planner.rules import plan_of
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import PAGE_SETS, Policy
from headrace.specs.units import format_bytes
from headrace.specs.workload import Workload

KIND, FORMAT = "headrace plan", 1

SECTIONS = frozenset(
    {"kind", "format", "versions", "model", "hardware", "workload", "memory", "prediction"}
    | {"baselines", "notes", "policy", "on_demand_rows"}
)

MOST: Mapping[str, int] = {
    "max_rows": 1 << 20,
    "max_seqs": 1 << 20,
    "micro_batches": 1 << 14,
    "chunk": 1 << 20,
    "compute_rows": 1 << 30,
    "slot_bytes": 1 << 40,
    "disk_lanes": 64,
    "kv_blocks": 1 << 32,
    "kv_block": 1 << 12,
    "threads": 1024,
}
"""Largest value of every number of a policy: beyond it the list of tasks alone would not fit."""

SLOTS = ("ring_slots", "stage_slots")
"""Numbers of slots: no more than there are pages, or LEAST_SLOTS."""

LEAST_ONE = frozenset({"max_rows", "max_seqs", "micro_batches", "chunk", "kv_block", "threads"})

MOST_PAGES = 1 << 18
"""Pages of a plan's model: several times those of the largest known."""

MOST_TASKS = 50_000_000
"""Pages times micro-batches of a policy: a schedule lists so many tasks at most."""


@dataclass(frozen=True)
class PlanFile:
    """What a plan file asks for, checked field by field; ``layout`` names the model's pages.

    ``any_threads``: the plan was made for a machine whose cores nobody counted.
    """

    policy: Policy
    on_demand_rows: int
    layout: str
    model: str
    any_threads: bool = False

    def threads(self, cores: int, name: str) -> int:
        """Threads to run with on a machine of ``cores``. Raises DocumentError for too few."""
        if self.any_threads:
            return cores
        if self.policy.threads > cores:
            raise DocumentError(
                f"threads of {name}", expected=f"at most {cores}, the cores of this machine",
                got=self.policy.threads, hint="leave threads out of policy: all cores are taken",
            )  # fmt: skip
        return self.policy.threads

    def check_model(self, model: ModelSpec, pages: tuple[Page, ...], name: str) -> None:
        """Raise DocumentError unless the plan is for these pages."""
        layout = layout_key(model, pages)
        if self.layout != layout:
            raise DocumentError(
                f"{name} is for another model", expected=f"layout {layout}",
                got=f"layout {self.layout} ({self.model})",
                hint="plan this model: headrace plan MODEL -o plan.yaml",
            )  # fmt: skip


def layout_key(model: ModelSpec, pages: tuple[Page, ...]) -> str:
    """Hash of what a policy refers to: architecture, pages and their sizes. Fine-tunes of one
    model share it; other shapes, formats or page cuts do not."""
    digest = blake2b(digest_size=8)
    digest.update(f"{model.architecture} {model.layers} {model.hidden} {model.vocab}".encode())
    for page in pages:
        digest.update(f"{page.role}{page.layer}{page.expert}{page.part}{page.bytes};".encode())
    return digest.hexdigest()


def plan_document(
    plan: Plan,
    at: Situation,
    model: str,
    hardware: str,
    *,
    version: str = "",
    any_threads: bool = False,
) -> dict[str, Any]:
    """``plan`` as plain data, complete enough to be read, compared and run.

    ``model`` and ``hardware`` say where both came from, ``version`` who planned; ``any_threads``
    leaves the number of threads open.
    """
    policy = policy_document(plan.policy)
    if any_threads:
        del policy["threads"]
    return {
        "kind": KIND,
        "format": FORMAT,
        "versions": {"headrace": version},
        "model": {
            "name": model,
            "architecture": at.model.architecture,
            "parameters": at.model.parameters(),
            "pages": len(at.pages),
            "page_bytes": sum(page.bytes for page in at.pages),
            "layout": layout_key(at.model, at.pages),
        },
        "workload": workload_document(at.workload),
        "policy": policy,
        "on_demand_rows": plan.on_demand_rows,
        "prediction": prediction_document(plan),
        "memory": memory_document(plan),
        "baselines": baseline_documents(plan),
        "notes": list(plan.notes),
        "hardware": {"source": hardware, **hardware_document(at.hardware)},
    }


def policy_document(policy: Policy) -> dict[str, Any]:
    """Every field of a policy; sets of pages as text."""
    sets = {name: compact(getattr(policy, name)) for name in PAGE_SETS}
    return {**asdict(policy), **sets}


def prediction_document(plan: Plan) -> dict[str, Any]:
    """Seconds and tokens per second. ``tokens_per_second`` counts generated tokens over the whole
    job, prefill included, as the literature does; the rates of prefill and decode are over their
    own shares of it. ``lanes`` are busy seconds, and ``next`` is the busiest lane after the one
    that bounds: ``share`` is its busy time over that one's."""
    found = plan.prediction
    order = sorted(found.lanes, key=lambda lane: -found.lanes[lane])
    first = found.lanes[order[0]] if order else 0.0
    second = order[1] if len(order) > 1 else None
    return {
        "job_seconds": found.seconds,
        "interval": [found.low, found.high],
        "tokens_per_second": found.decode_tokens_per_second,
        "prefill_tokens_per_second": found.prefill_phase_tokens_per_second,
        "decode_tokens_per_second": found.decode_phase_tokens_per_second,
        "bound_by": found.bound_by,
        "bound_busy_share": min(1.0, first / found.seconds) if found.seconds else 0.0,
        "next": None
        if second is None
        else {"lane": second, "share": found.lanes[second] / first if first else 0.0},
        "lanes": dict(found.lanes),
        "sweeps": found.sweeps,
        "rows_per_sweep": found.rows_per_sweep,
        "prefill_seconds": found.prefill_seconds,
        "bound_seconds": found.bound_seconds,
        "time_to_first_token_seconds": {
            name: getattr(found.first_token, name) for name in ("mean", "p50", "p99")
        },
        "bytes_moved": dict(found.bytes_moved),
        "bytes_read": found.bytes_read,
        "preemptions": found.preemptions,
        "assumed": found.assumed,
    }


def memory_document(plan: Plan) -> dict[str, Any]:
    """Tier -> planned and capacity bytes, and the parts of the former."""
    return {
        tier: {
            "planned_bytes": use.planned_bytes,
            "capacity_bytes": use.capacity_bytes,
            "parts": dict(use.parts),
        }
        for tier, use in plan.memory.tiers.items()
    }


def baseline_documents(plan: Plan) -> list[dict[str, Any]]:
    """Each baseline's time and how many times the plan's it is, or why it was refused."""
    own = plan.prediction.seconds
    return [
        {
            "name": each.name,
            "job_seconds": each.prediction.seconds if each.prediction else None,
            "ratio": each.prediction.seconds / own if each.prediction and own else None,
            "refusal": each.refusal or None,
        }
        for each in plan.baselines
    ]


def workload_document(workload: Workload) -> dict[str, Any]:
    """A job in totals, with the mean and the range of its lengths: they are not listed."""
    return {
        "requests": workload.requests,
        "prompt_tokens": workload.prompt_tokens,
        "gen_tokens": workload.gen_tokens,
        "prompt_len": _lengths_document(workload.prompt_lens),
        "gen_len": _lengths_document(workload.gen_lens),
        "longest": workload.longest,
        "assumed": workload.assumed,
    }


def _lengths_document(lens: Sequence[int]) -> dict[str, float]:
    mean = sum(lens) / max(1, len(lens))
    return {"mean": mean, "min": min(lens, default=0), "max": max(lens, default=0)}


def read_plan(document: object, name: str) -> PlanFile:
    """The plan in a file called ``name``, its fields checked. Raises DocumentError.

    Only what a run obeys is read: ``policy``, ``on_demand_rows`` and the model's ``layout``. The
    rest of the file is for people; it must be known, that no setting is thought to count that
    does not.
    """
    content = known_fields(document, name, SECTIONS)
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        raise DocumentError(
            f"{name} is not a plan of this version",
            expected=f"kind: {KIND}, format: {FORMAT}",
            got=f"kind: {content.get('kind')!s:.40}, format: {content.get('format')!s:.40}",
            hint="headrace plan MODEL -o plan.yaml writes one",
        )
    about = content.get("model")
    if not isinstance(about, Mapping):
        raise DocumentError(f"model of {name}", expected="the model that the plan is for")
    pages = whole(about.get("pages"), f"pages of {name}", 1, MOST_PAGES)
    policy = read_policy(content.get("policy"), f"policy of {name}", pages)
    rows = whole(content.get("on_demand_rows", 0), f"on_demand_rows of {name}", 0, policy.max_rows)
    if rows and policy.schedule not in ("stream", "on_demand"):
        raise DocumentError(
            f"on_demand_rows of {name}", expected=f"0 with {policy.schedule}", got=rows
        )
    layout = text(about.get("layout"), f"layout of {name}")
    model = text(about.get("name", ""), f"model of {name}")
    return PlanFile(policy, rows, layout, model, "threads" not in content["policy"])


def read_policy(document: object, where: str, pages: int) -> Policy:
    """A policy of a model of ``pages`` pages, each field in its range. Raises DocumentError."""
    kinds = {f.name: f for f in fields(Policy)}
    given = known_fields(document, where, kinds)
    missing = [n for n, f in kinds.items() if f.default is MISSING and n not in given]
    if missing:
        raise DocumentError(where, expected=", ".join(missing))
    values: dict[str, Any] = {}
    for name, value in given.items():
        place = f"{name} in {where}"
        if name in PAGE_SETS:
            values[name] = expand(value, pages)
        elif name in SLOTS:
            values[name] = whole(value, place, 0, max(pages, LEAST_SLOTS))
        elif name in MOST:
            values[name] = whole(value, place, int(name in LEAST_ONE), MOST[name])
        elif isinstance(kinds[name].default, bool):
            values[name] = switch(value, place)
        elif isinstance(kinds[name].default, float):
            values[name] = number(value, place, 0.0, 1.0)
        else:
            values[name] = text(value, place)
    try:
        policy = Policy(**values)
    except HeadraceError as fault:
        raise DocumentError(
            f"{where}: {fault.message}", expected=fault.expected, got=fault.got
        ) from None
    if policy.micro_batches > policy.max_rows or policy.micro_batches * pages > MOST_TASKS:
        raise DocumentError(
            f"micro_batches in {where}",
            expected=f"at most {min(policy.max_rows, MOST_TASKS // pages)}",
            got=policy.micro_batches,
        )
    return policy


def follow(plan: PlanFile, at: Situation, name: str) -> Plan:
    """The plan that a file asks for, its memory and its prediction made anew for ``at``.

    Raises DocumentError for another model, a policy that its pages or this machine cannot
    honour, too few KV blocks for the longest request, or more memory than there is.
    """
    plan.check_model(at.model, at.pages, name)
    policy = plan.policy
    if policy.on_device and not at.hardware.has_device:
        raise DocumentError(
            f"{name} computes on an accelerator", expected="a machine with one",
            got=at.hardware.name, hint="plan for this machine: --hardware auto",
        )  # fmt: skip
    if not policy.on_device:  # beside an accelerator its memory map says what each tier holds
        _check_residency(policy, at, name)
    longest = blocks_for(max(1, at.workload.longest), policy.kv_block)
    if policy.kv_blocks < longest:
        raise DocumentError(
            f"kv_blocks of {name}",
            expected=f"at least {longest} blocks of {policy.kv_block} tokens, "
            "for the longest request",
            got=policy.kv_blocks,
            hint="plan with this job: --input",
        )
    for tier, use in at.map_of(policy).tiers.items():
        if not use.fits:
            raise DocumentError(
                f"{name} takes more {tier} memory than there is",
                expected=f"at most {format_bytes(use.capacity_bytes)}",
                got=format_bytes(use.planned_bytes),
                hint="plan with less: --memory, or end other programs",
            )
    return plan_of(at, policy, plan.on_demand_rows)


def _check_residency(policy: Policy, at: Situation, name: str) -> None:
    """Pages that stream need a ring that fits them; the final norm never streams."""
    slot = at.residency.slot_bytes(policy.resident)
    final = [page.id for page in at.residency.final if page.id not in policy.resident]
    if final:
        raise DocumentError(f"resident pages of {name}", expected=f"{final[0]}, the final norm")
    if policy.schedule == "resident" and slot:
        raise DocumentError(
            f"schedule of {name}", expected="every page resident, or stream", got="resident"
        )
    if policy.slot_bytes != slot and (slot or policy.slot_bytes):
        raise DocumentError(
            f"slot_bytes of {name}",
            expected=f"{slot}, the largest page that streams",
            got=policy.slot_bytes,
        )
    if slot and policy.ring_slots < 2:
        raise DocumentError(f"ring_slots of {name}", expected="at least 2", got=policy.ring_slots)
    if not slot and policy.ring_slots:
        raise DocumentError(
            f"ring_slots of {name}", expected="0: nothing streams", got=policy.ring_slots
        )
