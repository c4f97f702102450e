"""Six schedules at the balance point of an accelerator, simulated: who leaves the link idle?

Mixtral-8x7B beside a T4: 1536 decodes over 141 tokens in micro-batches of 64, so that reading all
experts once per micro-batch takes the card about as long as sending them takes the link (Eq. 11 of
Cao et al. 2024: N / mu = bandwidth of the card / link). Attention weights stay on the card, experts
stream from pinned memory. Four layers are played; nothing is measured.

``python examples/compare_schedules.py``
"""

from __future__ import annotations

from headrace.planner.idle import Steady, compare
from headrace.planner.played import first_layers
from headrace.planner.sweeps import Load
from headrace.specs.hardware import H2D, HBM
from headrace.specs.pages import page_layout
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware, known_model

SCHEDULES = ("one_by_one", "flexgen", "flexgen_c", "fastdecode", "cgopipe")
MU, CONTEXT, LAYERS = 64, 141, 4


def main(model: str = "mixtral-8x7b", machine: str = "t4") -> None:
    """Print a line per schedule."""
    found, rows = at_balance(model, machine)
    bound = found[-1].bound_by
    print(f"{model} on {machine}: {rows} rows in micro-batches of {MU}, {LAYERS} layers, simulated")
    print(f"{'schedule':<12}{'s per sweep':>12}{f'{bound} busy':>12}{f'{bound} idle':>12}")
    for each in found:
        idle, busy = each.idle(bound), each.busy[bound]
        print(f"{each.schedule:<12}{each.seconds:>12.3f}{busy:>12.3f}{idle:>12.3f}")


def at_balance(model: str, machine: str) -> tuple[list[Steady], int]:
    """Steady sweeps of every schedule, and their rows."""
    hardware, spec = known_hardware(machine).hardware, known_model(model).spec
    parts = round(hardware.roofs[HBM] / hardware.roofs[H2D])
    rows, pages = parts * MU, page_layout(spec)
    experts = [page for page in pages if page.expert is not None]
    held = frozenset(page.id for page in pages) - {page.id for page in experts}
    policy = Policy(
        "cgopipe",
        max_rows=rows,
        max_seqs=rows,
        micro_batches=parts,
        resident=held,
        ring_slots=2 * len(experts) // spec.layers,
        slot_bytes=max(page.bytes for page in experts),
        kv_blocks=rows * -(-CONTEXT // 16),
        compute="device",
    )
    shorter = first_layers(LAYERS, spec, pages, policy)
    load = Load(rows, rows * CONTEXT, samples=rows)
    return compare(SCHEDULES, *shorter, hardware, load), rows


if __name__ == "__main__":
    main()
