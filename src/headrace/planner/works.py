"""The work of single tasks, and what it takes on a machine, each worked out once.

A search prices hundreds of sweeps whose tasks differ in how many there are, not in what they do.
Amounts come from ``schedule.work``.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.errors import UsageError
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.lanes import GPU
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import LANE, Work, rate_of
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page
from headrace.specs.policy import Policy


class What(NamedTuple):
    """A task, as far as its work depends on it."""

    op: Op
    lane: str
    layer: int | None = None
    page: int | None = None
    expert: int | None = None


class Rows(NamedTuple):
    """What it works on: new ``rows`` of one sequence that see ``kv`` tokens, tokens to draw. Means
    need not be whole."""

    rows: float
    kv: float
    samples: int = 0


class Amount(NamedTuple):
    """What a task draws of a roof, and the seconds of it there at the op's efficiency; None where
    nobody else draws on it."""

    roof: str
    amount: float
    seconds: float | None


class Priced(NamedTuple):
    """Seconds that a task takes alone, without the machine's own cost per task: at its efficiency,
    and at full rates (``least``)."""

    alone: float
    least: float
    amounts: tuple[Amount, ...]


class Works:
    """For policies of one model whose tasks differ in their number only, on one machine; ``pages``
    need hold no more than an example of each kind."""

    def __init__(
        self, model: ModelSpec, pages: tuple[Page, ...], policy: Policy, hardware: Hardware
    ) -> None:
        check_shares(model, hardware)
        self.fixed_seconds_of = hardware.fixed_seconds_of
        self._hardware = hardware
        self._model = WorkModel(model, pages, policy, devices=hardware.devices)
        self._known: dict[tuple[What, Rows], Work] = {}
        self._priced: dict[tuple[What, Rows, str], Priced] = {}
        self._bindings: dict[Rows, Binding] = {}
        self._rates: dict[str, float] = {}

    def of(self, what: What, rows: Rows) -> Work:
        """What a task of one micro-batch costs."""
        key = what, rows
        if key not in self._known:
            op, lane, layer, page, expert = what
            task = Task(op, lane, (), (), layer, 0, page, expert)
            self._known[key] = self._model.work(task, self._binding(rows))
        return self._known[key]

    def priced(self, what: What, rows: Rows, curve: str) -> Priced:
        """What it takes, at the efficiency of ``curve``."""
        key = what, rows, curve
        if key not in self._priced:
            self._priced[key] = self.price(self.of(what, rows), curve)
        return self._priced[key]

    def price(self, work: Work, curve: str) -> Priced:
        """The same of any work."""
        efficiency = self._hardware.efficiency_of(curve, work.rows)
        longest, amounts = 0.0, []
        for roof, amount in work.amounts.items():
            seconds = amount / self.rate(roof)
            longest = max(longest, seconds)
            shared = None if roof.startswith(LANE) else seconds / efficiency
            amounts.append(Amount(roof, amount, shared))
        behind = 0.0
        for roof, amount in work.crossing.items():
            seconds = amount / self.rate(roof)
            behind = max(behind, seconds)
            amounts.append(Amount(roof, amount, seconds))
        return Priced(longest / efficiency + behind, longest + behind, tuple(amounts))

    def rate(self, roof: str) -> float:
        """Units per second of ``roof``. Raises UsageError for one that the machine has not."""
        if roof not in self._rates:
            self._rates[roof] = rate_of(self._hardware, roof)
        return self._rates[roof]

    def _binding(self, rows: Rows) -> Binding:
        if rows not in self._bindings:
            extents = (Extent(rows.rows, rows.kv),) if rows.rows else ()  # type: ignore[arg-type]
            self._bindings[rows] = Binding((extents,), (rows.samples,))
        return self._bindings[rows]


def check_shares(model: ModelSpec, hardware: Hardware) -> None:
    """Raise UsageError for a model that does not divide evenly between the machine's devices."""
    count = hardware.devices
    if count == 1:
        return
    where, hint = f"{model.architecture} on {count} devices", "plan for one of them"
    if model.mla is not None:
        expected = "one device: a latent KV has no heads to divide"
        raise UsageError(where, expected=expected, hint=hint)
    sizes = {"heads": model.heads, "KV heads": model.kv_heads, "expert width": model.ffn_width}
    sizes |= {
        "dense width": model.dense_width,
        "shared width": model.shared.width if model.shared else 0,
    }
    for name, size in sizes.items():
        if size % count:
            expected = f"{name} in {count} equal parts"
            raise UsageError(where, expected=expected, got=size, hint=hint)


def curve_of(op: Op, lane: str) -> str:
    """Name of the curve that says how close ``op`` comes to the roofs on ``lane``."""
    return "gpu." + op if lane == GPU else op
