"""Random planning problems of small models, and an enumeration of policies apart from the search.

The enumeration builds policies from numbers on a grid four times finer than the search's: it fills
memory page by page until the memory map, or beside a device the generators' own sizes, say that it
is full, and prices each policy by playing the whole job. What a policy takes is asked of the same
prices as the search asks: what is independent is which policies are looked at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.errors import HeadraceError
from headrace.planner.candidates import Situation
from headrace.planner.memory_map import arena_bytes, memory_map
from headrace.planner.plan import Overrides
from headrace.planner.prices import Sketches, price
from headrace.planner.simulate import FewRows, job_seconds
from headrace.schedule.generate import generate
from headrace.specs.hardware import (
    CPU_FLOPS,
    D2H,
    DISK,
    DRAM,
    GPU_FLOPS,
    H2D,
    HBM,
    HOST,
    Hardware,
)
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload

STEPS = 10**9
_FEW_REQUESTS = 60


@dataclass(frozen=True)
class Problem:
    """A situation, and how long the best of many policies takes."""

    at: Situation

    def seconds(self, policy: Policy, sketches: Sketches | None = None) -> float:
        """The whole job under ``policy``, every sweep priced by a play."""
        at = self.at
        prices = price(at.model, at.pages, policy, at.hardware, sketches, at.mean_kv, at.kinds)
        return job_seconds(FewRows(prices), at.workload, STEPS)


def problem(seed: int, *, device: bool, long: bool = False) -> Problem:
    """Number ``seed`` of the problems; a ``long`` one has thousands of tokens to generate, so that
    the search takes the route of real jobs, and on a processor less memory than weights."""
    rng = random.Random(seed)
    model = ModelSpec(
        "mixtral", layers=rng.randint(3, 6), hidden=rng.choice([128, 256]), heads=4, kv_heads=2,
        head_dim=64, ffn_width=rng.choice([256, 512]), vocab=500, experts=rng.choice([4, 8]),
        top_k=2,
    )  # fmt: skip
    pages = page_layout(model, 200_000)
    count = rng.randint(150, 240) if long else rng.randint(30, 60)
    prompts = tuple(rng.randint(4, 60) for _ in range(count))
    gens = tuple(rng.randint(4, 40 if long else 24) for _ in range(count))
    roofs = {
        CPU_FLOPS: 10 ** rng.uniform(8.7, 9.7), DRAM: 10 ** rng.uniform(8.5, 9.5),
        DISK: 10 ** rng.uniform(7.0, 8.3), HOST: 1.0,
    }  # fmt: skip
    weights = sum(page.bytes for page in pages)
    share = rng.uniform(0.4, 0.9) if long else rng.uniform(0.55, 1.6)
    capacity = {"host": int(weights * share) + (2_000_000 if long else 6_000_000)}
    if device:
        roofs |= {
            GPU_FLOPS: 10 ** rng.uniform(10, 11), HBM: 10 ** rng.uniform(9.3, 10),
            H2D: 10 ** rng.uniform(7.7, 8.7), D2H: 1e8,
        }  # fmt: skip
        capacity["host"] += weights
        largest = sum(p.bytes for p in pages if p.expert is not None) / model.layers
        others = sum(p.bytes for p in pages if p.expert is None)
        capacity["device"] = int(others + (2 + 3 * rng.random()) * largest) + 9_000_000
    hardware = Hardware(
        "toy", roofs, capacity, lane_rate=roofs[DISK] / 1.5, task_seconds=2e-6, row_seconds=1e-6
    )
    job = Workload(prompts, gens, assumed=False)
    at = Situation(model, pages, None, hardware, job, capacity["host"], Overrides(chunk=16))
    return Problem(at)


def enumerated(found: Problem, most: int) -> Iterator[Policy]:
    """Policies of the fine grid that fit, at most about ``most`` of them."""
    at = found.at
    policies = _beside_device(at) if at.hardware.has_device else _on_host(at)
    everything = list(policies)
    stride = max(1, len(everything) // most)
    for make in everything[::stride]:
        try:
            policy = make()
        except HeadraceError:
            continue
        if policy is not None:
            yield policy


def _numbers(at: Situation) -> tuple[list[int], list[int]]:
    requests = at.workload.requests
    seqs = {1 + i * (requests - 1) // 11 for i in range(12)}
    if requests > _FEW_REQUESTS:  # steps of a fifth between small numbers, too
        seqs |= {round(2 ** (i / 4)) for i in range(4 * requests.bit_length() - 4)}
    return sorted(seqs), [round(at.overrides.chunk * f) for f in (1, 2.5, 6, 12, 32)]


def _kv_blocks(at: Situation, seqs: int) -> int:
    ends = sorted(
        -(-(p + g - 1) // 16)
        for p, g in zip(at.workload.prompt_lens, at.workload.gen_lens, strict=True)
    )
    return max(-(-sum(ends) * seqs // len(ends)), ends[-1])


def _asked(at: Situation) -> dict:
    names = ("chunk", "kv_dtype", "threads", "kernels", "activations")
    return {name: getattr(at.overrides, name) for name in names}


def _on_host(at: Situation):
    seqs, beside = _numbers(at)
    for s in seqs:
        for extra in beside:
            for slots in (3, 4, 6, 9, 14):
                yield lambda s=s, extra=extra, slots=slots: _host_policy(at, s, s + extra, slots)


def _host_policy(at: Situation, seqs: int, rows: int, slots: int) -> Policy | None:
    order = [p for p in at.pages if p.role is Role.FINAL]
    order += [p for p in at.pages if p.role in (Role.LAYER, Role.HEAD)]
    order += _spread([p for p in at.pages if p.expert is not None])
    order += [p for p in at.pages if p.role is Role.EMBED]
    sizes = at.residency.bytes_of
    base = Policy(
        "stream", max_rows=rows, max_seqs=seqs, compute_rows=rows, disk_lanes=2,
        kv_blocks=_kv_blocks(at, seqs), ring_slots=slots, slot_bytes=0, **_asked(at),
    )  # fmt: skip

    def of(count: int) -> Policy:
        held = frozenset(p.id for p in order[:count])
        rest = [sizes[p.id] for p in order[count:] if p.role is not Role.EMBED]
        name = "stream" if rest else "resident"
        return replace(
            base, schedule=name, resident=held, ring_slots=slots if rest else 0,
            slot_bytes=max(rest, default=0),
        )  # fmt: skip

    def fits(policy: Policy) -> bool:
        return memory_map(at.model, at.pages, policy, at.page_bytes).total_bytes <= at.budget_bytes

    return next((p for p in map(of, range(len(order), -1, -1)) if fits(p)), None)


def _beside_device(at: Situation):
    seqs, beside = _numbers(at)
    for schedule, parts in (
        ("cgopipe", (1, 2, 3, 4, 6, 8)),
        ("two_group", (2,)),
        ("resident", (1,)),
    ):
        for s in seqs:
            for extra in beside:
                for m in parts:
                    for share in (0.0, 0.1, 0.25, 0.5) if schedule != "resident" else (0.0,):
                        if m <= s + extra:
                            yield lambda a=(schedule, s, s + extra, m, share): _device_policy(
                                at, *a
                            )


def _device_policy(
    at: Situation, schedule: str, seqs: int, rows: int, parts: int, share: float
) -> Policy | None:
    experts = [p for p in at.pages if p.expert is not None]
    pairs = _spread(sorted({(p.layer, p.expert) for p in experts}))
    chosen = set(pairs[: round(share * len(pairs))])
    beside = frozenset(p.id for p in experts if (p.layer, p.expert) in chosen)
    rest = _spread([p for p in experts if p.id not in beside])
    always = frozenset(p.id for p in at.pages if p.expert is None and p.role is not Role.EMBED)
    slot = max(p.bytes for p in experts)

    def of(count: int) -> Policy | None:
        held = {p.id for p in rest[:count]}
        counts = [sum(p.layer == n for p in rest[count:]) for n in range(at.model.layers)]
        ring = max([a + b for a, b in zip(counts, [*counts[1:], 0], strict=True)])
        if schedule == "resident" and ring:
            return None
        return Policy(
            schedule, max_rows=rows, max_seqs=seqs, micro_batches=parts,
            compute_rows=rows, resident=always | held, ring_slots=ring,
            slot_bytes=slot if ring else 0, kv_blocks=_kv_blocks(at, seqs), compute="device",
            cpu_experts=beside, **_asked(at),
        )  # fmt: skip

    def fits(policy: Policy) -> bool:
        used: dict[str, int] = {}
        for size in generate(at.model, at.pages, policy).sizes.values():
            used[size.tier] = used.get(size.tier, 0) + arena_bytes(size.bytes)
        device = at.hardware.capacity["device"]
        host = used.get("host", 0) + used.get("pinned", 0)
        return used.get("device", 0) <= device and host <= at.budget_bytes

    low, high = -1, len(rest) + 1  # more on the device takes more of it: bisect
    best = None
    while high - low > 1:
        middle = (low + high) // 2
        policy = of(min(middle, len(rest)))
        if policy is None:
            low = middle
        elif fits(policy):
            low, best = middle, policy
        else:
            high = middle
    return best


def _spread(items: list) -> list:
    """Every eighth first, then the others in between: any beginning is spread evenly."""
    return [x for start in (0, 4, 2, 6, 1, 5, 3, 7) for x in items[start::8]]


def best_of(found: Problem, most: int) -> tuple[float, Policy]:
    """Seconds and policy of the fastest of the fine grid."""
    sketches = Sketches()
    priced = ((found.seconds(policy, sketches), policy) for policy in enumerated(found, most))
    return min(priced, key=lambda pair: pair[0])


def machine(disk: float) -> Hardware:
    """A processor whose disk reads so many bytes/s."""
    roofs = {CPU_FLOPS: 10e9, DRAM: 10e9, DISK: disk, HOST: 1.0}
    return Hardware(
        "toy", roofs, lane_rate=0.7 * disk, task_seconds=1e-7, attention_seconds=2e-5,
        row_seconds=1e-7,
    )  # fmt: skip
