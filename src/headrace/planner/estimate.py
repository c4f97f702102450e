"""A closed form for a sweep beside a device: busiest resource, or sums where a schedule waits.

Nothing is played: what is not overlapped at the seams of layers and sweeps is left out. It ranks;
``prices`` tells by how much it is wrong.
"""

from __future__ import annotations

from headrace.planner.costs import Total, Totals
from headrace.schedule.device import LOOKAHEAD
from headrace.schedule.lanes import CPU, GPU, STAGE
from headrace.schedule.task import Op
from headrace.specs.hardware import DRAM
from headrace.specs.policy import Policy

_WEIGHTS = (Op.UPLOAD_PAGE, Op.STAGE_PAGE, Op.READ_PAGE)
_BEHIND_WEIGHTS = (Op.LOAD_HIDDEN, Op.POST_ATTN, Op.ROUTER, Op.MOE)
_LAYERED = (Op.PRE_ATTN, Op.OFFLOAD_QKV, Op.ATTN, *_BEHIND_WEIGHTS, Op.BARRIER)
_GPU = (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.ROUTER, Op.MOE)


def about(policy: Policy, layers: int, totals: Totals) -> float:
    """Seconds of a steady sweep whose tasks add up to ``totals``."""
    if policy.schedule in ("one_by_one", "resident"):
        return sum(total.alone for total in totals.values())
    if policy.schedule in ("flexgen", "flexgen_c"):
        steps = _steps(policy, layers, totals)
        return max(steps, _busiest(policy, totals))
    if policy.schedule == "fastdecode":
        return max(_whole_layers(policy, totals), _busiest(policy, totals))
    return _busiest(policy, totals)


def _whole_layers(policy: Policy, totals: Totals) -> float:
    """A layer's weights hold up the next one's first hidden states; while the last of them go
    through, nothing crosses the link."""
    by_lane: dict[str, float] = {}
    for kind, total in totals.items():
        by_lane[kind.lane] = by_lane.get(kind.lane, 0.0) + total.alone
    ahead = 1 - min(1.0, LOOKAHEAD / policy.micro_batches)
    return by_lane.get("link", 0.0) + ahead * max(by_lane.get(CPU, 0.0), by_lane.get(GPU, 0.0))


def _busiest(policy: Policy, totals: Totals) -> float:
    lanes = _lanes(policy, totals)
    busy = [lane.alone for lane in lanes.values()]
    for roof in {roof for lane in lanes.values() for roof in lane.roofs}:
        busy.append(sum(lane.roofs.get(roof, 0.0) for lane in lanes.values()))
    link = lanes.get("link")
    if link is not None:
        busy += [_beside(link, lanes[other]) for other in (CPU, STAGE) if other in lanes]
    return max(busy, default=0.0)


def _beside(link: Total, other: Total) -> float:
    """Two lanes that share DRAM: while both run, each gets so much less than its own rate."""
    short, long = sorted((link.alone, other.alone))
    if not short:
        return long
    drawn = link.roofs.get(DRAM, 0.0) / link.alone + other.roofs.get(DRAM, 0.0) / other.alone
    return long + short * max(0.0, drawn - 1.0)


def _lanes(policy: Policy, totals: Totals) -> dict[str, Total]:
    """What each lane's tasks add up to; requests in flight to a disk are side by side."""
    lanes: dict[str, Total] = {}
    for kind, total in totals.items():
        lane = lanes.setdefault(kind.lane, Total())
        lane.alone += total.alone / (policy.disk_lanes if kind.lane == "disk" else 1)
        for roof, seconds in total.roofs.items():
            lane.roofs[roof] = lane.roofs.get(roof, 0.0) + seconds
    return lanes


def _steps(policy: Policy, layers: int, totals: Totals) -> float:
    """Steps with a barrier behind each. In a layer's first one the next layer's weights cross the
    link, in front of everything else on it."""
    parts = policy.micro_batches
    per_step = {kind: _Each(total, layers * parts) for kind, total in totals.items()}
    by_lane: dict[str, float] = {}
    for kind, total in totals.items():
        if kind.op in _WEIGHTS:
            by_lane[kind.lane] = by_lane.get(kind.lane, 0.0) + total.alone / layers
    weights = max(by_lane.values(), default=0.0)

    def sum_of(ops: tuple[Op, ...]) -> float:
        return sum(each.seconds for kind, each in per_step.items() if kind.op in ops)

    rest = sum(t.alone for k, t in totals.items() if k.op not in (*_LAYERED, *_WEIGHTS, *_KV))
    barrier = sum_of((Op.BARRIER,))
    if policy.schedule == "flexgen_c":
        chain = sum_of(_LAYERED) - barrier
        first = max(chain, weights + sum_of(_BEHIND_WEIGHTS))
        return layers * (first + (parts - 1) * chain + parts * barrier) + rest
    into, out, gpu = sum_of((Op.LOAD_KV,)), sum_of((Op.STORE_KV,)), sum_of(_GPU)
    first, other = max(gpu, weights + into, out), max(gpu, into, out)
    return layers * (first + (parts - 1) * other + parts * barrier) + rest


_KV = (Op.LOAD_KV, Op.STORE_KV)


class _Each:
    def __init__(self, total: Total, steps: int) -> None:
        self.seconds = total.alone / steps
