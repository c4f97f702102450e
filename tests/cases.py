"""Drawn cases: models, page cuts, policies and sweeps over the ranges that the laws name."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from headrace.schedule.generate import generate, next_phase
from headrace.schedule.placement import streamed_pages
from headrace.schedule.task import Schedule
from headrace.specs.model import ModelSpec, SharedExpert
from headrace.specs.pages import Page, Role, page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, ON_DEVICE_ATTENTION, SCHEDULES, Policy

ALL = (*SCHEDULES, *(f"device {name}" for name in DEVICE_SCHEDULES))
"""Schedules of both tiers of compute."""

CHUNK = 3
"""Prompt tokens that a sequence prefills per sweep."""


@dataclass(frozen=True)
class Case:
    """A model under a policy, and what its sweeps compute.

    ``prompts`` gives prompt length and first sweep per sequence; sequence s is always in
    micro-batch s modulo their number. It prefills in chunks, then decodes, until the last sweep.
    """

    model: ModelSpec
    pages: tuple[Page, ...]
    policy: Policy
    prompts: tuple[tuple[int, int], ...]
    sweeps: int

    def schedules(self) -> list[Schedule]:
        """The schedule of each sweep, the ring going on from one to the next."""
        phase, found = 0, []
        for _ in range(self.sweeps):
            found.append(generate(self.model, self.pages, self.policy, phase))
            phase = next_phase(self.pages, self.policy, phase)
        return found

    def plans(self) -> list[tuple[tuple[tuple[int, int], ...], ...]]:
        """Per sweep and micro-batch: (sequence, rows)."""
        return [
            tuple(
                tuple((seq, self._rows(seq, sweep)) for seq in self._members(mb, sweep))
                for mb in range(self.policy.micro_batches)
            )
            for sweep in range(self.sweeps)
        ]

    def _members(self, mb: int, sweep: int) -> list[int]:
        here = range(mb, len(self.prompts), self.policy.micro_batches)
        return [seq for seq in here if self.prompts[seq][1] <= sweep]

    def _rows(self, seq: int, sweep: int) -> int:
        length, first = self.prompts[seq]
        return max(1, min(CHUNK, length - CHUNK * (sweep - first)))


@st.composite
def cases(
    draw: st.DrawFn,
    schedules: tuple[str, ...] = ALL,
    max_layers: int = 4,
    max_experts: int = 16,
    every_expert: bool = False,
) -> Case:
    """Any case in range; with ``every_expert``, each row visits every expert, no micro-batch is
    empty, and every sweep samples."""
    experts = draw(st.integers(2, max_experts) | st.just(1))
    layers = draw(st.integers(1, max_layers))
    model = ModelSpec(
        "toy",
        layers=layers,
        hidden=8,
        heads=2,
        kv_heads=1,
        head_dim=4,
        ffn_width=6,
        vocab=11,
        experts=experts,
        top_k=experts if every_expert else draw(st.integers(1, min(experts, 3))),
        tied_embeddings=draw(st.booleans()),
        **(draw(_mixtures(layers)) if experts > 1 else {}),
    )
    pages = page_layout(model, cut_bytes=draw(st.sampled_from((64, 100, 10**6))))
    tier, schedule = draw(st.sampled_from(schedules).map(_tier_and_name))
    micro_batches = 2 if schedule == "two_group" else draw(st.integers(1, 5))
    sequences = draw(st.integers(micro_batches if every_expert else 1, micro_batches + 3))
    sweeps = draw(st.integers(1, 3))
    first = st.just(0) if every_expert else st.integers(0, sweeps - 1)
    prompts = draw(
        st.lists(
            st.tuples(st.integers(1, 2 * CHUNK), first), min_size=sequences, max_size=sequences
        )
    )
    if every_expert:  # somebody draws a token in every sweep: a head nobody needs proves nothing
        prompts[0] = (min(prompts[0][0], CHUNK), 0)
    per_mb = -(-sequences // micro_batches) * CHUNK
    policy = Policy(
        schedule,
        max_rows=per_mb * micro_batches,
        max_seqs=sequences,
        micro_batches=micro_batches,
        resident=draw(_residents(pages, schedule)),
        ring_slots=draw(st.integers(2, 6)),
        slot_bytes=4096,
        disk_lanes=draw(st.integers(1, 3)),
        kv_blocks=sequences,
        compute=tier,
    )
    if tier == "device":
        policy = draw(_on_device(policy, pages))
    return Case(model, pages, policy, tuple(prompts), sweeps)


def _tier_and_name(name: str) -> tuple[str, str]:
    return ("device", name[7:]) if name.startswith("device ") else ("host", name)


@st.composite
def _mixtures(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    """Sometimes a shared expert, dense first layers, or both."""
    shared = draw(st.none() | st.builds(SharedExpert, st.just(5), st.booleans()))
    dense = draw(st.sampled_from((0, 0, min(1, layers - 1))))
    return {"shared": shared, "dense_layers": dense, "dense_width": 7}


@st.composite
def _cpu_experts(draw: st.DrawFn, policy: Policy, pages: tuple[Page, ...]) -> frozenset[int]:
    """Pages of some whole experts, none of them resident."""
    groups: dict[tuple[int | None, int], list[int]] = {}
    for page in pages:
        if page.expert is not None:
            groups.setdefault((page.layer, page.expert), []).append(page.id)
    free = [ids for ids in groups.values() if policy.resident.isdisjoint(ids)]
    return frozenset(i for ids in free if draw(st.booleans()) for i in ids)


@st.composite
def _on_device(draw: st.DrawFn, policy: Policy, pages: tuple[Page, ...]) -> Policy:
    """Homes of all kinds, and a ring that holds two layers, hardly or easily."""
    if policy.schedule != "resident" and draw(st.booleans()):
        policy = replace(policy, cpu_experts=draw(_cpu_experts(policy, pages)))
    streamed = streamed_pages(pages, policy)
    counts = Counter(page.layer for page in streamed)
    order = [*range(1 + max(p.layer for p in pages if p.layer is not None)), None]
    needed = max(counts[a] + counts[b] for a, b in itertools.pairwise(order))
    on_disk = frozenset(p.id for p in streamed if draw(st.integers(0, 3)) == 0)
    shares = st.sampled_from((0.0, 0.5, 1.0))
    return replace(
        policy,
        compute="device",
        ring_slots=needed + draw(st.integers(0, 2)),
        on_disk=on_disk,
        pageable=draw(st.booleans()),
        stage_slots=draw(st.integers(1, 3)),
        kv_on_device=draw(shares) if policy.schedule in ON_DEVICE_ATTENTION else 0.0,
    )


@st.composite
def _residents(draw: st.DrawFn, pages: tuple[Page, ...], schedule: str) -> frozenset[int]:
    """None to all of the pages, and often the embedding table on top."""
    ids = [page.id for page in pages]
    if schedule == "resident":
        table = [p.id for p in pages if p.role is Role.EMBED and draw(st.booleans())]
        return frozenset(ids) - frozenset(table)
    share = draw(st.floats(0, 1))
    chosen = Random(draw(st.integers(0, 99))).sample(ids, round(share * len(ids)))
    table = [page.id for page in pages if page.role is Role.EMBED and draw(st.booleans())]
    return frozenset((*chosen, *table))
