"""A policy as somebody wrote it down: fields of ``Policy`` by name, or the classic form.

The classic form is that of published profile files, in requests: ``batch_size``,
``micro_batch_size``, ``use_cpu_attention``, ``use_gpu_ffn``, ``weight_gpu_ratio``,
``kv_cache_gpu_ratio``. What is not written follows from model, machine and job. Whatever comes in
is data that anybody may have written: every value has its type and range, every key is known.
"""

from __future__ import annotations

import bisect
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from headrace.batching.blocks import blocks_for
from headrace.errors import UsageError
from headrace.planner.prices import price
from headrace.planner.sweeps import Load
from headrace.schedule.placement import streamed_pages
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, Role
from headrace.specs.policy import PAGE_SETS, Policy
from headrace.specs.scratch import READ_SLACK
from headrace.specs.workload import Workload

CLASSIC = (
    *("batch_size", "micro_batch_size", "use_cpu_attention", "use_gpu_ffn"),
    *("weight_gpu_ratio", "kv_cache_gpu_ratio"),
)
"""Keys of the classic form."""

SHARES = {"r_w": "resident", "r_c": "kv_on_device"}
"""Shares that stand for a field: of expert bytes, and of KV, on the tier that computes."""

MOST = 1 << 40
MOST_PARTS = 4096
"""Micro-batches of a policy that is read: each has tasks and buffers of its own."""

MOST_PREFILL_ROWS = 8192
"""Rows of a sweep beside its decodes that are filled in, at most."""

_STAGE_SLOTS = 4
_RING_SLOTS = 4  # on a CPU, if nothing is said


@dataclass(frozen=True)
class Setting:
    """What a policy is read for."""

    model: ModelSpec
    pages: tuple[Page, ...]
    hardware: Hardware
    workload: Workload

    @property
    def mean_prompt(self) -> int:
        """Tokens of a prompt, on average."""
        return max(1, self.workload.prompt_tokens // max(1, self.workload.requests))


def read_policy(content: object, at: Setting, schedule: str | None = None) -> Policy:
    """The policy that ``content``, parsed YAML or JSON, describes; ``schedule`` overrides its own.

    Raises UsageError, naming the key, for anything that is not a policy or cannot be honoured.
    """
    written = _mapping(content)
    classic = sorted(set(written) & set(CLASSIC))
    other = sorted(set(written) - set(CLASSIC))
    if classic and other:
        raise UsageError(
            "a policy in two forms at once",
            expected=f"fields of a policy, or the classic {', '.join(CLASSIC)}",
            got=f"{classic[0]} beside {other[0]}",
        )
    values = _from_classic(written) if classic else _from_fields(written)
    if schedule is not None:
        values["schedule"] = schedule
    return _completed(values, at)


# -- the two forms ------------------------------------------------------------------------


def _from_classic(written: Mapping[str, Any]) -> dict[str, Any]:
    """Requests become rows of decodes; where attention runs chooses the schedule."""
    batch = _whole(written, "batch_size", None, least=1)
    mu = _whole(written, "micro_batch_size", batch, least=1)
    if mu > batch:
        raise UsageError("micro_batch_size", expected=f"at most batch_size, {batch}", got=mu)
    attention_on_cpu = _switch(written, "use_cpu_attention", True)
    values: dict[str, Any] = {"max_seqs": batch, "micro_batches": -(-batch // mu)}
    if not _switch(written, "use_gpu_ffn", True):
        if not attention_on_cpu:
            raise UsageError(
                "use_gpu_ffn: false with use_cpu_attention: false",
                expected="experts on the GPU, or everything on the CPU",
            )
        return values | {"compute": "host", "schedule": "resident", "micro_batches": 1}
    values |= {"compute": "device", "schedule": "cgopipe" if attention_on_cpu else "flexgen"}
    values["r_w"] = _share(written, "weight_gpu_ratio", 0.0)
    if share := _share(written, "kv_cache_gpu_ratio", 0.0):
        values["r_c"] = share
    return values


def _from_fields(written: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name: field for field in fields(Policy)}
    values: dict[str, Any] = {}
    for key in written:
        if key in SHARES:
            if SHARES[key] in written:
                raise UsageError(f"{key} beside {SHARES[key]}", expected="one of the two")
            values[key] = _share(written, key, 0.0)
        elif key not in known:
            names = [*known, *SHARES, *CLASSIC]
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
            raise UsageError(
                "unknown key of a policy", expected=", ".join(names), got=_short(key),
                hint=close[0] if close else None,
            )  # fmt: skip
        elif key in PAGE_SETS:
            values[key] = _pages(written, key)
        else:
            values[key] = _plain(written, key, known[key].default)
    if "max_seqs" not in values:
        raise UsageError("a policy without max_seqs", expected="sequences in a sweep, at most")
    return values


# -- what is not written ------------------------------------------------------------------


def _completed(values: dict[str, Any], at: Setting) -> Policy:
    values.setdefault("compute", "device" if at.hardware.has_device else "host")
    on_device = values["compute"] == "device"
    if on_device and not at.hardware.has_device:
        raise UsageError("compute on the device", expected="a machine with an accelerator",
                         got=at.hardware.name)  # fmt: skip
    values.setdefault("schedule", "cgopipe" if on_device else "stream")
    if values["schedule"] == "two_group":
        values.setdefault("micro_batches", 2)
    if values.get("micro_batches", 1) > MOST_PARTS:
        raise UsageError(
            "micro_batches", expected=f"at most {MOST_PARTS}", got=values["micro_batches"]
        )
    rows_given = "max_rows" in values
    values.setdefault("max_rows", max(1, values["max_seqs"]))
    shares = {name: values.pop(name) for name in SHARES if name in values}
    if "r_c" in shares:
        values["kv_on_device"] = shares["r_c"]
    _place(values, shares.get("r_w"), at)
    block = values.setdefault("kv_block", 16)
    if not values.get("kv_blocks"):
        longest = blocks_for(max(1, at.workload.longest), max(1, block))
        values["kv_blocks"] = longest * max(1, values["max_seqs"])
    policy = _sized(Policy(**values), at)
    return policy if rows_given else _with_prefill(policy, at)


def _place(values: dict[str, Any], share: float | None, at: Setting) -> None:
    """Page sets that were not given as lists of pages."""
    pages, experts = at.pages, [p for p in at.pages if p.expert is not None]
    known = {page.id for page in pages}
    for name in PAGE_SETS:
        found = values.get(name, frozenset())
        if isinstance(found, frozenset) and not found <= known:
            raise UsageError(
                f"pages of {name}", expected=f"ids from 0 to {len(pages) - 1}",
                got=min(found - known),
            )  # fmt: skip
    if isinstance(values.get("resident"), float):
        share = values.pop("resident")
    if "resident" not in values:
        everything = values["schedule"] == "resident" and share is None
        held = experts if everything else _spread(experts, share or 0.0)
        values["resident"] = frozenset(p.id for p in pages if p.expert is None) | _ids(held)
    values["resident"] |= frozenset(p.id for p in pages if p.role is Role.FINAL)
    if isinstance(share := values.get("cpu_experts"), float):
        values["cpu_experts"] = _whole_experts(_without(experts, values), share)
    if isinstance(share := values.get("on_disk"), float):
        values["on_disk"] = _ids(_spread(_without(experts, values), share))


def _without(pages: list[Page], values: Mapping[str, Any]) -> list[Page]:
    """Those of ``pages`` that have no place yet."""
    taken: frozenset[int] = values["resident"]
    beside = values.get("cpu_experts", frozenset())
    taken |= beside if isinstance(beside, frozenset) else frozenset()
    return [page for page in pages if page.id not in taken]


def _sized(policy: Policy, at: Setting) -> Policy:
    """``policy`` with ring and pinned slots that hold what streams, where none were given."""
    streamed = streamed_pages(at.pages, policy)
    if not streamed:
        return replace(policy, ring_slots=0, slot_bytes=0)
    ring, slot, stage = policy.ring_slots, policy.slot_bytes, policy.stage_slots
    largest = max(page.bytes for page in streamed) + (0 if policy.on_device else READ_SLACK)
    through_pinned = policy.on_device and (policy.pageable or policy.on_disk)
    least = _two_layers(streamed, at.model) if policy.on_device else _RING_SLOTS
    return replace(
        policy,
        ring_slots=ring or least,
        slot_bytes=slot or largest,
        stage_slots=stage or (_STAGE_SLOTS if through_pinned else 0),
    )


def _two_layers(streamed: Iterable[Page], model: ModelSpec) -> int:
    counts = [0] * (model.layers + 1)
    for page in streamed:
        counts[model.layers if page.layer is None else page.layer] += 1
    return max(a + b for a, b in pairwise(counts))


def _with_prefill(policy: Policy, at: Setting) -> Policy:
    """Rows for prompts beside the decodes: as many as computation hides behind what moves, or
    enough for full speed where nothing does. Policies published in requests know decodes only."""
    room = policy.max_seqs + MOST_PREFILL_ROWS
    prices = price(at.model, at.pages, replace(policy, max_rows=room), at.hardware)

    def computes(rows: int) -> bool:
        lanes = prices.lanes(Load(0, 0, rows, at.mean_prompt, 1))
        busy = [lanes.get(lane, 0.0) for lane in ("gpu", "cpu")]
        return max(busy) > max((lanes.get(lane, 0.0) for lane in _MOVING), default=0.0)

    moves = policy.ring_slots > 0
    balanced = bisect.bisect_left(range(1, room), True, key=computes) + 1
    compute_rows = balanced if moves else policy.max_seqs + _RESIDENT_ROWS
    rows = max(policy.max_seqs + policy.chunk, compute_rows)
    return replace(policy, max_rows=min(rows, room), compute_rows=compute_rows)


_MOVING = ("link", "stage", "disk")
_RESIDENT_ROWS = 512


def _spread(pages: list[Page], share: float) -> list[Page]:
    """``share`` of ``pages``, evenly over them."""
    count = round(share * len(pages))
    return [pages[i * len(pages) // count] for i in range(count)]


def _whole_experts(pages: list[Page], share: float) -> frozenset[int]:
    """All pages of ``share`` of the experts whose pages these are."""
    experts = list(dict.fromkeys((page.layer, page.expert) for page in pages))
    count = round(share * len(experts))
    chosen = {experts[i * len(experts) // count] for i in range(count)}
    return frozenset(page.id for page in pages if (page.layer, page.expert) in chosen)


def _ids(pages: Iterable[Page]) -> frozenset[int]:
    return frozenset(page.id for page in pages)


# -- values -------------------------------------------------------------------------------


def _mapping(content: object) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UsageError(
            "a policy", expected="a mapping of fields to values", got=type(content).__name__
        )
    if not content:
        raise UsageError("an empty policy", expected="max_seqs, or batch_size, at least")
    return content


def _plain(written: Mapping[str, Any], key: str, default: object) -> Any:
    """The value of ``key``, of the kind of ``default``."""
    value = written[key]
    if isinstance(default, bool):
        return _switch(written, key, default)
    if isinstance(default, float):
        return _share(written, key, default)
    if isinstance(default, str) or key == "schedule":
        if not isinstance(value, str):
            raise UsageError(key, expected="a name", got=_short(value))
        return value
    return _whole(written, key, None, least=0)


def _pages(written: Mapping[str, Any], key: str) -> frozenset[int] | float:
    """Page ids, or the share of expert bytes that a number stands for."""
    value = written[key]
    if isinstance(value, list):
        if not all(type(page) is int and 0 <= page <= MOST for page in value):
            raise UsageError(key, expected="a list of page ids, or a share from 0 to 1")
        return frozenset(value)
    return _share(written, key, 0.0)


def _whole(written: Mapping[str, Any], key: str, default: int | None, least: int) -> int:
    value = written.get(key, default)
    if value is None:
        raise UsageError(f"a policy without {key}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= MOST:
        raise UsageError(key, expected=f"a whole number from {least}", got=_short(value))
    return value


def _share(written: Mapping[str, Any], key: str, default: float) -> float:
    value = written.get(key, default)
    number = float(value) if type(value) in (int, float) and abs(value) <= MOST else math.nan
    if not 0.0 <= number <= 1.0:
        raise UsageError(key, expected="a share from 0 to 1", got=_short(value))
    return number


def _switch(written: Mapping[str, Any], key: str, default: bool) -> bool:
    value = written.get(key, default)
    if type(value) is not bool:
        raise UsageError(key, expected="true or false", got=_short(value))
    return value


def _short(value: object) -> str:
    """Enough of a value for a message."""
    text = repr(value) if not isinstance(value, int) else "a number too large"
    if isinstance(value, int) and abs(value) < 10**18:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
