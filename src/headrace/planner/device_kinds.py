"""The kinds of tasks that a schedule beside an accelerator is made of, without drawing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headrace.planner.census import Weights
from headrace.planner.sketch import Kind
from headrace.schedule.lanes import CPU, D2H, GPU, HOST, ROWS, STAGE
from headrace.schedule.task import Op
from headrace.specs.policy import Policy

_LINK, _DISK = "link", "disk"


def kinds_of(
    policy: Policy, turns: Iterable[int], *, rows_read: bool, cpu: bool, disk: bool
) -> tuple[Kind, ...]:
    """Kinds of tasks under ``policy``, some of which may not occur, in layers of ``turns``.
    ``rows_read``: embedding rows are looked up on the host; ``cpu``: it multiplies experts;
    ``disk``: some are read."""
    found = [*_ends(policy, rows_read)]
    for turn in turns:
        found += [kind._replace(turn=turn) for kind in _in_layer(policy, cpu, disk)]
    return tuple(found)


def _in_layer(policy: Policy, cpu: bool, disk: bool) -> Iterator[Kind]:
    for op in (Op.PRE_ATTN, Op.POST_ATTN, Op.ROUTER):
        yield Kind(op, GPU, Weights.LAYER)
    yield from _attention(policy)
    if policy.schedule == "two_group":
        for weights in (Weights.EXPERTS, Weights.ON_DISK, Weights.HELD):
            yield Kind(Op.EXPERT, GPU, weights)
    else:
        yield Kind(Op.MOE, GPU)
    if cpu:
        yield from (Kind(Op.OFFLOAD_HIDDEN, D2H), Kind(Op.MOE, CPU))
        yield from (Kind(Op.LOAD_PARTIAL, _LINK), Kind(Op.COMBINE, GPU))
    if policy.schedule != "resident":
        yield from _weights(policy, disk)


def _ends(policy: Policy, rows_read: bool) -> Iterator[Kind]:
    yield Kind(Op.BIND, HOST)
    if rows_read:
        yield from (Kind(Op.READ_ROWS, ROWS), Kind(Op.LOAD_ROWS, _LINK))
    yield from (Kind(Op.EMBED, GPU), Kind(Op.FINAL, GPU, Weights.FINAL))
    yield Kind(Op.LOGITS, GPU, Weights.HEAD)
    yield from (Kind(Op.SAMPLE, GPU), Kind(Op.COMMIT, HOST))
    if policy.schedule in ("flexgen", "flexgen_c"):
        yield Kind(Op.BARRIER, HOST)


def _attention(policy: Policy) -> Iterator[Kind]:
    if not policy.attention_on_device:
        yield from (Kind(Op.ATTN, CPU), Kind(Op.OFFLOAD_QKV, D2H), Kind(Op.LOAD_HIDDEN, _LINK))
        return
    yield Kind(Op.ATTN, GPU)
    if policy.schedule == "flexgen" and policy.device_kv_parts < policy.micro_batches:
        yield from (Kind(Op.LOAD_KV, _LINK), Kind(Op.STORE_KV, D2H))


def _weights(policy: Policy, disk: bool) -> Iterator[Kind]:
    yield Kind(Op.UPLOAD_PAGE, _LINK, Weights.EXPERTS)
    if policy.pageable:
        yield Kind(Op.STAGE_PAGE, STAGE, Weights.EXPERTS)
    if disk:
        yield Kind(Op.UPLOAD_PAGE, _LINK, Weights.ON_DISK)
        yield Kind(Op.READ_PAGE, _DISK, Weights.ON_DISK)
