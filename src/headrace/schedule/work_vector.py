"""The unit of cost: amounts per roof, and how long they take on a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from headrace.errors import UsageError
from headrace.specs.hardware import D2H, DRAM, H2D, HOST, STAGE, Hardware

TOKENS = "host tokens"
"""Host work per token: turning it into text, and what is decided once it is known."""

SEQUENCES = "host sequences"
"""Host work per sequence of a batch: choosing it, placing it, its block table."""

ROW_READS = "row reads"
"""Rows of a table fetched from disk: many small reads, whose latency counts, not their bytes."""

_HOST_WORK = {
    HOST: "row_seconds",
    TOKENS: "token_seconds",
    SEQUENCES: "sequence_seconds",
    ROW_READS: "row_read_seconds",
}

LANE = "lane:"
"""Prefix of the private roof of a disk lane: a request in flight reaches only so much."""


class Work(NamedTuple):
    """Amounts per roof (FLOPs, bytes; for the ``host`` roof, rows), and the rows that decide
    how close to its roofs the task gets. ``exchanged`` bytes go from device to device behind all
    that: through memory of the host, over the links both ways. ``parts``, if there are any, are
    what it consists of, one after the other, each as close to the roofs as its own rows let it.
    ``chance``: that there is something to do at all; else the machine passes the task over.
    ``sequences`` that decode cost attention on a processor something each, whatever they see."""

    amounts: Mapping[str, float]
    rows: float
    exchanged: float = 0.0
    parts: tuple[Work, ...] = ()
    chance: float = 1.0
    sequences: float = 0.0

    def times(self, count: float) -> Work:
        """As many of the same, each as close to its roofs."""
        amounts = {roof: count * a for roof, a in self.amounts.items()}
        return self._replace(amounts=amounts, sequences=count * self.sequences)

    @property
    def crossing(self) -> Mapping[str, float]:
        """Amounts of the exchange: they are drawn at the roofs' full rates."""
        if not self.exchanged:
            return {}
        return {D2H: self.exchanged, H2D: self.exchanged, DRAM: 2 * self.exchanged}

    def seconds(self, hardware: Hardware, efficiency: float = 1.0) -> dict[str, float]:
        """Roof -> seconds the amounts take on it alone. Raises UsageError for a roof unknown."""
        return {
            roof: amount / rate_of(hardware, roof) / efficiency
            for roof, amount in self.amounts.items()
            if amount
        }

    def exchange_seconds(self, hardware: Hardware) -> dict[str, float]:
        """Roof -> seconds that the exchange between devices takes on it alone."""
        return {roof: amount / rate_of(hardware, roof) for roof, amount in self.crossing.items()}


class Alone(NamedTuple):
    """What a task takes by itself, and the seconds of each roof in them."""

    seconds: float
    roofs: Mapping[str, float]


def alone(work: Work, hardware: Hardware, op: str) -> Alone:
    """``work`` on ``hardware``, as close to its roofs as ``op`` comes with so many rows. What every
    task takes anyway, and an exchange between devices, are not in it. Raises UsageError for a roof
    unknown."""
    if not work.parts:
        roofs = work.seconds(hardware, hardware.efficiency_of(op, work.rows))
        each = work.sequences * hardware.attended_seconds
        return Alone(max(roofs.values(), default=0.0) + each, roofs)
    seconds, total = 0.0, dict[str, float]()
    for part in work.parts:
        found = alone(part, hardware, op)
        seconds += found.seconds
        for roof, each in found.roofs.items():
            total[roof] = total.get(roof, 0.0) + each
    return Alone(seconds, total)


def rate_of(hardware: Hardware, roof: str) -> float:
    """Units per second of ``roof``. Raises UsageError for one that the machine does not name."""
    if roof in _HOST_WORK:
        seconds = getattr(hardware, _HOST_WORK[roof])
        return 1.0 / seconds if seconds else math.inf
    if roof.startswith(LANE):
        return hardware.lane_rate
    if roof == STAGE:
        return hardware.roofs.get(STAGE, math.inf)
    rate = hardware.roofs.get(roof)
    if not rate:
        raise UsageError(
            f"{hardware.name} has no rate for the roof {roof}",
            expected=f"one of {', '.join(hardware.roofs) or 'none given'}",
            hint="calibrate this machine, or add the rate to its description",
        )
    return rate
