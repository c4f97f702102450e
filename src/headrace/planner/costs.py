"""What a sweep's tasks take on a machine, kind by kind, for any load: exact sums, no play.

Amounts come from ``schedule.work``. Layers and pages that are alike are counted once; sequences of
a load are alike by definition. Micro-batches share the rows evenly, as the batcher's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from headrace.planner.census import AlikeLayers, Census, Way, Weights, turn_of
from headrace.planner.sketch import Kind
from headrace.planner.sweeps import Load
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.lanes import GPU
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import LANE, Work, rate_of
from headrace.specs.hardware import Hardware
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

    def add(self, count: float, work: Work, efficiency: float, hardware: Hardware) -> None:
        """Count ``count`` tasks of ``work`` in."""
        longest = 0.0
        for roof, amount in work.amounts.items():
            seconds = amount / rate_of(hardware, roof)
            longest = max(longest, seconds)
            self.amounts[roof] = self.amounts.get(roof, 0.0) + count * amount
            if not roof.startswith(LANE):  # nobody shares it
                self.roofs[roof] = self.roofs.get(roof, 0.0) + count * seconds / efficiency
        self.tasks += count
        self.least += count * longest
        self.alone += count * (longest / efficiency + hardware.task_seconds)


Totals = Mapping[Kind, Total]


class SweepCosts:
    """Totals of one policy's sweeps on a device; ``of`` costs a fraction of a millisecond."""

    def __init__(self, census: Census, policy: Policy, hardware: Hardware) -> None:
        self.model = census.model
        self.policy = policy
        self.hardware = hardware
        self._layers = census.layers
        self._period = census.period
        self._classes = census.classes
        self._work = WorkModel(census.model, census.examples(), policy)

    def of(self, load: Load, kinds: Iterable[Kind]) -> Totals:
        """The totals of ``kinds`` in a sweep of ``load``; a kind that never occurs has none."""
        at = _At(load, self.policy.micro_batches)
        return {kind: self._total(kind, at) for kind in kinds}

    def _total(self, kind: Kind, at: _At) -> Total:
        total = Total()
        name = kind.op.value if kind.lane != GPU else f"gpu.{kind.op.value}"
        for count, work, op in self._tasks(kind, at):
            curve = name if op is None else f"gpu.{op.value}" if kind.lane == GPU else op.value
            total.add(count, work, self.hardware.efficiency_of(curve, work.rows), self.hardware)
        return total

    def _tasks(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        """(how many, work of one, its op if it is another's)."""
        if kind.op in (Op.UPLOAD_PAGE, Op.STAGE_PAGE, Op.READ_PAGE):
            yield from self._moved(kind, at)
        elif kind.op is Op.EXPERT:
            yield from self._by_page(kind, at)
        elif kind.op is Op.MOE:
            yield from self._grouped(kind, at)
        elif kind.op is Op.ATTN:
            yield from self._attention(kind, at)
        elif kind.op in (Op.LOAD_KV, Op.STORE_KV):
            yield from self._kv(kind, at)
        elif kind.op in _PER_SWEEP:
            yield 1, self._once(kind, at), None
        elif kind.op is Op.LOGITS:
            for page, count in self._pages(Weights.HEAD, None):
                task = Task(kind.op, kind.lane, (), (), page=page.id)
                yield count, self._work.work(task, at.whole), None
        elif kind.op is Op.BARRIER:
            steps = self.model.layers * at.parts
            yield steps, Work({}, 0), None
        else:
            yield from self._per_part(kind, at)

    def _per_part(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        """A task per micro-batch, and per layer unless it is EMBED."""
        if kind.op is Op.EMBED:
            task = Task(kind.op, kind.lane, (), (), mb=0)
            for parts, binding in at.bindings:
                yield parts, self._work.work(task, binding), None
            return
        beside = kind.op in (Op.OFFLOAD_HIDDEN, Op.LOAD_PARTIAL, Op.COMBINE)
        for group in self._groups(kind):
            if (kind.op is Op.ROUTER and not group.routed) or (beside and not group.beside):
                continue
            task = Task(kind.op, kind.lane, (), (), group.layer, 0, group.page.id)
            for parts, binding in at.bindings:
                yield group.layers * parts, self._work.work(task, binding), None

    def _attention(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        for group in self._groups(kind):
            task = Task(kind.op, kind.lane, (), (), group.layer, 0)
            amounts = self._over_sequences(task, at)
            yield group.layers * at.parts, Work(amounts, at.load.rows / at.parts), None

    def _kv(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        moved = at.parts - self.policy.device_kv_parts
        for group in self._groups(kind):
            task = Task(kind.op, kind.lane, (), (), group.layer, 0)
            amounts = self._over_sequences(task, at)
            yield group.layers * moved, Work(amounts, at.load.rows / at.parts), None

    def _over_sequences(self, task: Task, at: _At) -> dict[str, float]:
        """Amounts of a mean micro-batch."""
        amounts: dict[str, float] = {}
        for sequences, binding in at.sequences:
            for roof, amount in self._work.work(task, binding).amounts.items():
                amounts[roof] = amounts.get(roof, 0.0) + amount * sequences / at.parts
        return amounts

    def _once(self, kind: Kind, at: _At) -> Work:
        task = Task(kind.op, kind.lane, (), ())
        if kind.op is not Op.BIND:
            return self._work.work(task, at.whole)
        one = self._work.work(task, Binding(((Extent(1, 1),),), (0,)))
        count = sum(sequences for sequences, _ in at.sequences)
        return Work({roof: amount * count for roof, amount in one.amounts.items()}, count)

    def _moved(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        """Pages to the device, or into pinned memory, each in the way that it comes."""
        for (weights, way, turn), pages in self._classes.items():
            if weights is not kind.weights or way is Way.STAYS or turn != kind.turn:
                continue
            op = kind.op if kind.op is Op.UPLOAD_PAGE else _INTO_STAGE.get(way)
            if op is None:
                continue
            for page, count in pages:
                task = Task(op, kind.lane, (), (), page.layer, page=page.id)
                yield count, self._work.work(task, at.whole), op

    def _by_page(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        assert kind.weights is not None
        for page, count in self._pages(kind.weights, kind.turn):
            op = Op(page.role.value)
            task = Task(op, kind.lane, (), (), page.layer, 0, page.id, page.expert)
            for parts, binding in at.bindings:
                yield count * parts, self._work.work(task, binding), op

    def _pages(self, weights: Weights, turn: int | None) -> Iterator[tuple[Page, int]]:
        for (kind, _, of), pages in self._classes.items():
            if kind is weights and of == turn:
                yield from pages

    def _groups(self, kind: Kind) -> Iterator[AlikeLayers]:
        """The layers whose turn it is."""
        period = self._period
        return (group for group in self._layers if turn_of(group.layer, period) == kind.turn)

    def _grouped(self, kind: Kind, at: _At) -> Iterator[tuple[float, Work, Op | None]]:
        """All experts of a layer that one processor has, as one task."""
        whole = self.policy.schedule == "resident"  # all micro-batches at once
        bindings = [(1, at.whole)] if whole else at.bindings
        for group in self._groups(kind):
            pages = group.own if kind.lane == GPU else group.beside
            if not pages:
                continue
            for parts, binding in bindings:
                amounts: dict[str, float] = {}
                for page, count in pages:
                    task = Task(Op.EXPERT, kind.lane, (), (), group.layer, 0, page.id, page.expert)
                    for roof, amount in self._work.work(task, binding).amounts.items():
                        amounts[roof] = amounts.get(roof, 0.0) + count * amount
                rows = binding.rows * self.model.visits_in(group.layer)
                work = Work(amounts, rows / self.model.experts_in(group.layer))
                yield group.layers * parts, work, None


_PER_SWEEP = (Op.BIND, Op.READ_ROWS, Op.LOAD_ROWS, Op.FINAL, Op.SAMPLE, Op.COMMIT)
_INTO_STAGE = {Way.PAGEABLE: Op.STAGE_PAGE, Way.DISK: Op.READ_PAGE}


class _At:
    """A load as bindings of one micro-batch each."""

    def __init__(self, load: Load, parts: int) -> None:
        self.load = load
        self.parts = parts
        self.whole = _binding(load.rows, load.samples)
        low, more = divmod(load.rows, parts)
        counts = ((parts - more, low), (more, low + 1))
        self.bindings = [(count, _binding(rows, 0)) for count, rows in counts if count]
        self.sequences = list(_sequences(load))


def _binding(rows: int, samples: int) -> Binding:
    return Binding(((Extent(rows, rows),) if rows else (),), (samples,))


def _sequences(load: Load) -> Iterator[tuple[float, Binding]]:
    """(how many, the binding of one): decodes at their mean length, prompts at theirs."""
    if load.decodes:
        low, more = divmod(max(load.decode_kv, load.decodes), load.decodes)
        for count, kv in ((load.decodes - more, low), (more, low + 1)):
            if count:
                yield count, Binding(((Extent(1, kv),),))
    if load.chunk_rows:
        rows = min(load.chunk_rows, max(1, load.chunk_kv))
        kv = max(rows, load.chunk_kv)
        yield load.chunk_rows / rows, Binding(((Extent(rows, kv),),))
