"""What a run took, beside what was planned: the figures of ``--json`` and of the final table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headrace.engine.record import Record
from headrace.memory.tiers import peak_rss_bytes
from headrace.planner.simulate import predict
from headrace.specs.hardware import CPU_FLOPS, DISK
from headrace.specs.policy import PAGE_SETS
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from headrace.engine.llm import LLM


@dataclass(frozen=True)
class RunSummary:
    """Figures of one run; SI units. ``bytes_read`` and ``bytes_needed`` are of the sweeps,
    ``loaded_bytes`` of the resident pages before them. ``predicted_seconds`` was said before
    the run (output lengths assumed where ``predicted_assumed``), ``predicted_after_seconds``
    is the same prediction with the lengths that came out; like ``wall_seconds``, both leave the
    loading out. All that is predicted is what is played times exp(``predicted_bias``), which
    earlier runs let expect."""

    schedule: str
    numerics: str
    lines: int
    done: int
    failed: int
    prompt_tokens: int
    generated_tokens: int
    sweeps: int
    preemptions: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    total_tokens_per_second: float
    requests_per_second: float
    wall_seconds: float
    load_seconds: float
    predicted_seconds: float
    predicted_low_seconds: float
    predicted_high_seconds: float
    predicted_assumed: bool
    predicted_after_seconds: float
    predicted_bias: float
    bound_seconds: float
    bound_by: str
    bytes_read: int
    bytes_needed: int
    loaded_bytes: int
    direct_io: bool
    direct_io_reason: str
    lanes: Mapping[str, Mapping[str, float]]
    ops: Mapping[str, Mapping[str, float]]
    tiers: Mapping[str, Mapping[str, int]]
    memory: Mapping[str, int]
    peak_rss_bytes: int
    budget_bytes: int
    roofs: Mapping[str, float]
    policy: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def summarise(
    llm: LLM, record: Record, wall: float, realised: Workload, lines: Mapping[str, int]
) -> RunSummary:
    """Put measured beside planned. ``wall`` counts from the first sweep's start to the last
    durable line, loading apart."""
    plan, session, hardware = llm.current_plan, llm.session, llm.hardware
    counters = session.batcher.counters.since(record.before)
    prefill, decode = record.rates()
    model, pages = llm.loaded.model, llm.loaded.pages
    after = (
        predict(model, pages, plan.policy, hardware, realised, plan.on_demand_rows)
        if realised.requests
        else None
    )
    sets = {name: len(getattr(plan.policy, name)) for name in PAGE_SETS}
    policy = {**asdict(plan.policy), **sets}
    tokens = counters.prompt_tokens + counters.sampled_tokens
    return RunSummary(
        schedule=plan.policy.schedule,
        numerics=llm.numerics,
        lines=lines["lines"],
        done=lines["done"],
        failed=lines["failed"],
        prompt_tokens=counters.prompt_tokens,
        generated_tokens=counters.sampled_tokens,
        sweeps=len(record.sweeps),
        preemptions=counters.preemptions,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        total_tokens_per_second=tokens / wall if wall else 0.0,
        requests_per_second=realised.requests / wall if wall else 0.0,
        wall_seconds=wall,
        load_seconds=session.load_seconds,
        predicted_seconds=plan.prediction.seconds,
        predicted_low_seconds=plan.prediction.low,
        predicted_high_seconds=plan.prediction.high,
        predicted_assumed=plan.prediction.assumed,
        predicted_after_seconds=after.seconds if after else 0.0,
        predicted_bias=hardware.bias,
        bound_seconds=record.bound_seconds(hardware),
        bound_by=plan.bound_by,
        bytes_read=record.bytes_read,
        bytes_needed=record.needed_bytes,
        loaded_bytes=session.loaded_bytes,
        direct_io=llm.loaded.reader.mode == "direct",
        direct_io_reason=llm.loaded.reader.reason,
        lanes=_lanes(record, after.lanes if after else {}),
        ops=_ops(record, math.exp(hardware.bias)),
        tiers={
            "host": {
                "planned_bytes": plan.memory.total_bytes,
                "used_bytes": session.arena.used + plan.memory.margin_bytes,
            }
        },
        memory={**plan.memory.parts, "margin": plan.memory.margin_bytes},
        peak_rss_bytes=peak_rss_bytes(),
        budget_bytes=llm.budget,
        roofs={name: hardware.roofs[name] for name in (DISK, CPU_FLOPS)},
        policy=policy,
    )


def _ops(record: Record, longer: float) -> dict[str, dict[str, float]]:
    """Busy seconds and tasks of every op; of those that compute, the seconds predicted, ``longer``
    times those played."""
    predicted = record.predicted
    return {
        name: {
            **busy._asdict(),
            **({"predicted_seconds": longer * predicted[name]} if name in predicted else {}),
        }
        for name, busy in record.totals.ops.items()
    }


def _lanes(record: Record, predicted: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Busy seconds and share of every lane; ``disk`` is the time with any read in flight."""
    wall = record.totals.wall_seconds
    busy = {name: lane.seconds for name, lane in record.totals.lanes.items()}
    if record.disk_seconds:
        busy["disk"] = record.disk_seconds
    return {
        name: {
            "busy_seconds": seconds,
            "utilisation": seconds / wall if wall else 0.0,
            **({"predicted_busy_seconds": predicted[name]} if name in predicted else {}),
        }
        for name, seconds in busy.items()
    }
