"""What a sweep's tasks take on a machine, kind by kind, for any load: exact sums, no play.

Amounts come from ``works``. Layers and pages that are alike are counted once; sequences of a load
are alike by definition. Micro-batches share the rows evenly, as the batcher's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from headrace.planner.census import AlikeLayers, Census, Way, Weights, turn_of
from headrace.planner.sketch import Kind
from headrace.planner.sweeps import Load
from headrace.planner.works import Priced, Rows, What, Works, curve_of
from headrace.schedule.lanes import GPU
from headrace.schedule.task import Op
from headrace.schedule.work_vector import Work
from headrace.specs.pages import Page
from headrace.specs.policy import Policy


@dataclass
class Total:
    """Tasks of one kind in a full sweep: how many, the seconds each would take alone added up,
    and per roof; ``least`` and ``amounts`` the same at efficiency 1, without the machine's own
    cost per task, and amounts instead of seconds."""

    tasks: float = 0.0
    alone: float = 0.0
    roofs: dict[str, float] = field(default_factory=dict)
    least: float = 0.0
    amounts: dict[str, float] = field(default_factory=dict)


Totals = Mapping[Kind, Total]
Known = dict[tuple[Kind, object], Total]


class SweepCosts:
    """Totals of one policy's sweeps on a device.

    A total is worked out once for all loads that it is the same for: most depend on rows only.
    ``known`` are totals that another instance found, of kinds that do not depend on the census.
    """

    def __init__(
        self, census: Census, policy: Policy, works: Works, known: Known | None = None
    ) -> None:
        self.model = census.model
        self.policy = policy
        self._works = works
        self._layers = census.layers
        self._period = census.period
        self._classes = census.classes
        self._own: Known = {}
        self._shared = self._own if known is None else known

    def of(self, load: Load, kinds: Iterable[Kind]) -> Totals:
        """The totals of ``kinds`` in a sweep of ``load``; a kind that never occurs has none."""
        at = _At(load, self.policy.micro_batches)
        return {kind: self._total(kind, at) for kind in kinds}

    def _total(self, kind: Kind, at: _At) -> Total:
        known = self._own if kind.op in OF_EXPERTS else self._shared
        key = kind, at.part_that_counts(kind.op)
        if key not in known:
            known[key] = self._counted(kind, at)
        return known[key]

    def _counted(self, kind: Kind, at: _At) -> Total:
        total, fixed = Total(), self._works.fixed_seconds_of(curve_of(kind.op, kind.lane))
        for count, priced in self._tasks(kind, at):
            total.tasks += count
            total.least += count * priced.least
            total.alone += count * (priced.alone + fixed)
            for roof, amount, seconds in priced.amounts:
                total.amounts[roof] = total.amounts.get(roof, 0.0) + count * amount
                if seconds is not None:
                    total.roofs[roof] = total.roofs.get(roof, 0.0) + count * seconds
        return total

    def _tasks(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        """(how many, what one takes)."""
        if kind.op in (Op.UPLOAD_PAGE, Op.STAGE_PAGE, Op.READ_PAGE):
            yield from self._moved(kind, at)
        elif kind.op is Op.EXPERT:
            yield from self._by_page(kind, at)
        elif kind.op is Op.MOE:
            yield from self._grouped(kind, at)
        elif kind.op in (Op.ATTN, Op.LOAD_KV, Op.STORE_KV):
            yield from self._over_sequences(kind, at)
        elif kind.op is Op.BIND:
            yield 1, self._works.price(self._bound(kind, at), curve_of(kind.op, kind.lane))
        elif kind.op in _PER_SWEEP:
            yield 1, self._priced(What(kind.op, kind.lane), at.whole)
        elif kind.op is Op.LOGITS:
            for page, count in self._pages(Weights.HEAD, None):
                yield count, self._priced(What(kind.op, kind.lane, page=page.id), at.whole)
        elif kind.op is Op.BARRIER:
            yield self.model.layers * at.parts, _NOTHING
        else:
            yield from self._per_part(kind, at)

    def _priced(self, what: What, rows: Rows) -> Priced:
        return self._works.priced(what, rows, curve_of(what.op, what.lane))

    def _per_part(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        """A task per micro-batch, and per layer unless it is EMBED."""
        if kind.op is Op.EMBED:
            for parts, rows in at.each_part:
                yield parts, self._priced(What(kind.op, kind.lane), rows)
            return
        beside = kind.op in (Op.OFFLOAD_HIDDEN, Op.LOAD_PARTIAL, Op.COMBINE)
        for group in self._groups(kind):
            if (kind.op is Op.ROUTER and not group.routed) or (beside and not group.beside):
                continue
            what = What(kind.op, kind.lane, group.layer, group.page.id)
            for parts, rows in at.each_part:
                yield group.layers * parts, self._priced(what, rows)

    def _over_sequences(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        """A task per layer and micro-batch, of a mean one."""
        parts = at.parts - (0 if kind.op is Op.ATTN else self.policy.device_kv_parts)
        for group in self._groups(kind):
            what, amounts = What(kind.op, kind.lane, group.layer), dict[str, float]()
            for sequences, rows in at.sequences:
                for roof, amount in self._works.of(what, rows).amounts.items():
                    amounts[roof] = amounts.get(roof, 0.0) + amount * sequences / at.parts
            work = Work(amounts, at.load.rows / at.parts)
            yield group.layers * parts, self._works.price(work, curve_of(kind.op, kind.lane))

    def _bound(self, kind: Kind, at: _At) -> Work:
        """All sequences placed in a batch."""
        one = self._works.of(What(kind.op, kind.lane), Rows(1, 1))
        count = sum(sequences for sequences, _ in at.sequences)
        return Work({roof: amount * count for roof, amount in one.amounts.items()}, count)

    def _moved(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        """Pages to the device, or into pinned memory, each in the way that it comes."""
        for (weights, way, turn), pages in self._classes.items():
            if weights is not kind.weights or way is Way.STAYS or turn != kind.turn:
                continue
            op = kind.op if kind.op is Op.UPLOAD_PAGE else _INTO_STAGE.get(way)
            if op is None:
                continue
            for page, count in pages:
                yield count, self._priced(What(op, kind.lane, page.layer, page.id), at.whole)

    def _by_page(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        assert kind.weights is not None
        for page, count in self._pages(kind.weights, kind.turn):
            what = What(Op(page.role), kind.lane, page.layer, page.id, page.expert)
            for parts, rows in at.each_part:
                yield count * parts, self._priced(what, rows)

    def _grouped(self, kind: Kind, at: _At) -> Iterator[tuple[float, Priced]]:
        """All experts of a layer that one processor has, as one task."""
        whole = self.policy.schedule == "resident"  # all micro-batches at once
        curve = curve_of(kind.op, kind.lane)
        for group in self._groups(kind):
            pages = group.own if kind.lane == GPU else group.beside
            if not pages:
                continue
            share = self.model.visits_in(group.layer) / self.model.experts_in(group.layer)
            for parts, rows in [(1, at.whole)] if whole else at.each_part:
                amounts: dict[str, float] = {}
                for page, count in pages:
                    what = What(Op.EXPERT, kind.lane, group.layer, page.id, page.expert)
                    for roof, amount in self._works.of(what, rows).amounts.items():
                        amounts[roof] = amounts.get(roof, 0.0) + count * amount
                work = Work(amounts, rows.rows * share)
                yield group.layers * parts, self._works.price(work, curve)

    def _pages(self, weights: Weights, turn: int | None) -> Iterator[tuple[Page, int]]:
        for (kind, _, of), pages in self._classes.items():
            if kind is weights and of == turn:
                yield from pages

    def _groups(self, kind: Kind) -> Iterator[AlikeLayers]:
        """The layers whose turn it is."""
        period = self._period
        return (group for group in self._layers if turn_of(group.layer, period) == kind.turn)


OF_EXPERTS = (Op.UPLOAD_PAGE, Op.STAGE_PAGE, Op.READ_PAGE, Op.EXPERT, Op.MOE)
"""Tasks whose number, or work, depends on which expert pages are where."""

_PER_SWEEP = (Op.READ_ROWS, Op.LOAD_ROWS, Op.FINAL, Op.SAMPLE, Op.COMMIT)
_PER_SAMPLE = (Op.FINAL, Op.LOGITS, Op.SAMPLE, Op.COMMIT)
_PER_SEQUENCE = (Op.ATTN, Op.LOAD_KV, Op.STORE_KV, Op.BIND)
_INTO_STAGE = {Way.PAGEABLE: Op.STAGE_PAGE, Way.DISK: Op.READ_PAGE}
_NOTHING = Priced(0.0, 0.0, ())
_MANY = 16  # rows of a micro-batch


class _At:
    """A load as rows of one micro-batch each, or of one sequence."""

    def __init__(self, load: Load, parts: int) -> None:
        self.load = load
        self.parts = parts
        self.whole = Rows(load.rows, load.rows, load.samples)
        low, more = divmod(load.rows, parts)
        shares = [(parts - more, float(low)), (more, low + 1.0)]
        if low >= _MANY:  # one more makes no difference
            shares = [(parts, load.rows / parts)]
        self.each_part = [(count, Rows(rows, rows)) for count, rows in shares if count]
        self.sequences = list(_sequences(load))

    def part_that_counts(self, op: Op) -> object:
        """All of the load that tasks of ``op`` depend on."""
        if op in _PER_SEQUENCE:
            return self.load
        return self.load.samples if op in _PER_SAMPLE else self.load.rows


def _sequences(load: Load) -> Iterator[tuple[float, Rows]]:
    """(how many, the rows of one): decodes at their mean length, prompts at theirs."""
    if load.decodes:
        yield load.decodes, Rows(1, max(load.decode_kv, load.decodes) / load.decodes)
    if load.chunk_rows:
        rows = min(load.chunk_rows, max(1, load.chunk_kv))
        yield load.chunk_rows / rows, Rows(rows, max(rows, load.chunk_kv))
