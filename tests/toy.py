"""A Mixture-of-Experts model in NumPy: op bodies and the memory they work on.

Bodies see declared buffers only, and those that they do not write are read-only to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cases import Case
from toy_model import attend, empty, ffn_in, make_weights, norm, pack, route, unpack

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.machines.machine import Body, Machine, Views
from headrace.machines.trace import SweepTrace
from headrace.schedule.device import FLIGHTS, KV_SLOTS
from headrace.schedule.task import Buffer, Op, Task

BATCH, REQUESTS, SAMPLED = Buffer("batch"), Buffer("requests"), Buffer("sampled")
ROWS, INTER, FINAL, LOGITS = Buffer("rows"), Buffer("inter"), Buffer("final"), Buffer("logits")


@dataclass
class Sweep:
    """What is given to ``append``: the sequences and rows of each micro-batch."""

    plan: tuple[tuple[tuple[int, int], ...], ...]


@dataclass
class Requests:
    """Host state: tokens and KV length per sequence; ``log`` holds all that was ever sampled."""

    tokens: list[list[int]]
    kv_len: list[int]
    log: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)


class Box:
    """A host object in a buffer; poisoned, it is None."""

    value: Any = None


class Toy:
    """The memory of one run and the bodies that work on it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = case.model
        self.weights = make_weights(case.model)
        rng = np.random.default_rng(1)
        prompts = [rng.integers(0, case.model.vocab, n).tolist() for n, _ in case.prompts]
        self.requests = Requests(prompts, [0] * len(prompts))
        self.baton: list[str] = []
        self.hidden: list[list[bytes]] = []  # what the last layer left, rows not sampled too
        self.memory = self._memory()
        self.bodies: Mapping[Op, Body] = {op: self._guarded(body) for op, body in self._ops()}

    def run(self, machine: Machine) -> list[SweepTrace]:
        """Append every sweep of the case at once, wait for all."""
        plans = zip(self.case.schedules(), self.case.plans(), strict=True)
        tickets = [machine.append(schedule, Sweep(plan)) for schedule, plan in plans]
        traces = [ticket.wait() for ticket in reversed(tickets)]
        return traces[::-1]

    def outcome(self) -> tuple[Any, ...]:
        """All that is left of a run, bit for bit."""
        log = [(seq, at, token, row.tobytes()) for seq, at, token, row in self.requests.log]
        kv = [m.tobytes() for b, m in self.memory.items() if b.name in ("kv", "kv_part")]
        return (log, self.requests.tokens, self.requests.kv_len, kv, self.baton, self.hidden)

    def poison(self, buffer: Buffer) -> None:
        """Spoil ``buffer``: NaN, impossible ids, no object."""
        held = self.memory[buffer]
        if isinstance(held, Box):
            held.value = None
        elif isinstance(held, tuple):
            held[0].fill(-(10**9))
            held[1].fill(np.nan)
        elif isinstance(held, np.ndarray):
            held.fill(np.nan)

    # -- memory --------------------------------------------------------------------------

    def _memory(self) -> dict[Buffer, Any]:
        model, policy = self.model, self.case.policy
        N, S, mu, D = policy.max_rows, policy.max_seqs, policy.mu, model.hidden
        memory: dict[Buffer, Any] = {
            **{BATCH: Box(), SAMPLED: Box()},
            **{ROWS: empty(N, D), INTER: empty(N, model.widest)},
            **{FINAL: empty(S, D), LOGITS: empty(S, model.vocab), Buffer("scratch"): empty(1)},
            **{Buffer(name): empty(mu, model.q_size) for name in ("q", "attended")},
        }
        for mb in range(policy.micro_batches):
            memory |= {Buffer(name, mb): empty(mu, D) for name in ("hidden", "normed")}
            k = model.visits_in(model.layers - 1)
            memory[Buffer("routing", mb)] = np.full((mu, k), -(10**9)), empty(mu, k)
        for layer in range(model.layers):
            memory[Buffer("kv", layer)] = np.zeros((2, S, 64, model.kv_size))
        largest = max(sum(s.elements for s in page.slices) for page in self.case.pages)
        for slot in range(policy.ring_slots):
            memory[Buffer("slot", slot)] = empty(largest)
        for page in self.case.pages:
            for home in ("page", "home", "pinned"):
                memory[Buffer(home, page.id)] = pack(self.weights, page)
        memory |= self._beside_a_device(largest)
        return memory | {REQUESTS: self.requests, Buffer("baton"): self.baton}

    def _beside_a_device(self, largest: int) -> dict[Buffer, Any]:
        model, policy = self.model, self.case.policy
        S, mu = policy.max_seqs, policy.mu
        qkv = model.q_size + 2 * model.kv_size
        memory: dict[Buffer, Any] = {Buffer("done", lane): Box() for lane in range(8)}
        memory |= {Buffer("rows_sent"): empty(policy.max_rows, model.hidden)}
        memory |= {Buffer("scratch_host"): empty(1)}
        memory |= {Buffer("stage", slot): empty(largest) for slot in range(policy.stage_slots)}
        for i in range(FLIGHTS):
            memory |= {Buffer(name, i): empty(mu, qkv) for name in ("qkv", "qkv_host")}
            k = model.visits_in(model.layers - 1)
            memory[Buffer("routing_host", i)] = np.full((mu, k), -(10**9)), empty(mu, k)
            for name in ("normed_host", "partial_host", "partial"):
                memory[Buffer(name, i)] = empty(mu, model.hidden)
            names = ("attended_host", "attended")
            memory |= {Buffer(name, i): empty(mu, model.q_size) for name in names}
        for slot in range(KV_SLOTS):
            for name in ("kv_slot", "kv_new"):
                memory[Buffer(name, slot)] = empty(2, S, 64, model.kv_size)
        for part in range(model.layers * policy.micro_batches):
            memory[Buffer("kv_part", part)] = np.zeros((2, S, 64, model.kv_size))
        return memory

    def _guarded(self, body: Body) -> Body:
        """``body`` with what it does not write made read-only, and the baton noted."""

        def guarded(task: Task, views: Views, sweep: Any) -> None:
            seen = {b: v if b in task.writes else _frozen(v) for b, v in views.items()}
            if Buffer("baton") in task.writes:
                self.baton.append(task.label)
            body(task, seen, sweep)

        return guarded

    # -- bodies --------------------------------------------------------------------------

    def _ops(self) -> Iterator[tuple[Op, Body]]:
        for op in Op:
            yield op, getattr(self, f"_{op.value}")

    def _bind(self, task: Task, views: Views, sweep: Sweep) -> None:
        requests = views[REQUESTS]

        def segment(seq: int, rows: int) -> Segment:
            start, tokens = requests.kv_len[seq], requests.tokens[seq]
            new = tuple(tokens[start : start + rows])
            return Segment(seq, new, start, (), start + rows == len(tokens))

        views[BATCH].value = Batch(
            tuple(MicroBatch(tuple(segment(*each) for each in mb)) for mb in sweep.plan)
        )

    def _read_rows(self, task: Task, views: Views, sweep: Sweep) -> None:
        tokens = [t for mb in _batch(views).micro_batches for s in mb.segments for t in s.tokens]
        views[ROWS][: len(tokens)] = self.weights["embed", None, None][tokens]

    def _read_page(self, task: Task, views: Views, sweep: Sweep) -> None:
        page = self.case.pages[task.page]
        routing = [view[0] for buffer, view in views.items() if buffer.name == "routing"]
        counts = [sum(rows for _, rows in mb) for mb in sweep.plan]
        chosen = [ids[:m] for ids, m in zip(routing, counts, strict=False)]
        assert all((ids >= 0).all() for ids in chosen), "routing read before it was written"
        if not routing or any((ids == page.expert).any() for ids in chosen):
            flat = pack(self.weights, page)
            _only(views, "slot", "stage")[: len(flat)] = flat

    def _stage_page(self, task: Task, views: Views, sweep: Sweep) -> None:
        count = len(pack(self.weights, self.case.pages[task.page]))
        _only(views, "stage")[:count] = _only(views, "home")[:count]

    def _upload_page(self, task: Task, views: Views, sweep: Sweep) -> None:
        count = len(pack(self.weights, self.case.pages[task.page]))
        _only(views, "slot")[:count] = _only(views, "pinned", "stage")[:count]

    def _load_rows(self, task: Task, views: Views, sweep: Sweep) -> None:
        n = sum(mb.rows for mb in _batch(views).micro_batches)
        views[Buffer("rows_sent")][:n] = views[ROWS][:n]

    def _offload_qkv(self, task: Task, views: Views, sweep: Sweep) -> None:
        m = _rows(task, views)
        _only(views, "qkv_host")[:m] = _only(views, "qkv")[:m]

    def _load_hidden(self, task: Task, views: Views, sweep: Sweep) -> None:
        m = _rows(task, views)
        _only(views, "attended")[:m] = _only(views, "attended_host")[:m]

    def _load_kv(self, task: Task, views: Views, sweep: Sweep) -> None:
        for s in _batch(views).micro_batches[task.mb].segments:
            cached = _only(views, "kv_part")[:, s.sequence, : s.start]
            _only(views, "kv_slot")[:, s.sequence, : s.start] = cached

    def _store_kv(self, task: Task, views: Views, sweep: Sweep) -> None:
        for s in _batch(views).micro_batches[task.mb].segments:
            new = _only(views, "kv_new")[:, s.sequence, s.start : s.kv_len]
            _only(views, "kv_part")[:, s.sequence, s.start : s.kv_len] = new

    def _offload_hidden(self, task: Task, views: Views, sweep: Sweep) -> None:
        m = _rows(task, views)
        _only(views, "normed_host")[:m] = _only(views, "normed")[:m]
        if self.model.is_routed(task.layer):
            for into, part in zip(
                _only(views, "routing_host"), _only(views, "routing"), strict=True
            ):
                into[:m] = part[:m]

    def _load_partial(self, task: Task, views: Views, sweep: Sweep) -> None:
        m = _rows(task, views)
        _only(views, "partial")[:m] = _only(views, "partial_host")[:m]

    def _combine(self, task: Task, views: Views, sweep: Sweep) -> None:
        m = _rows(task, views)
        views[Buffer("hidden", task.mb)][:m] += _only(views, "partial")[:m]

    def _barrier(self, task: Task, views: Views, sweep: Sweep) -> None:
        """Nothing but its waits."""

    def _embed(self, task: Task, views: Views, sweep: Sweep) -> None:
        batch = _batch(views)
        before = sum(mb.rows for mb in batch.micro_batches[: task.mb])
        m = batch.micro_batches[task.mb].rows
        sent = [view for buffer, view in views.items() if buffer.name in ("rows", "rows_sent")]
        if sent:
            rows = sent[0][before : before + m]
        else:
            held = [buffer for buffer in task.reads if buffer.name == "page"]
            table = [unpack(self.case.pages[b.index], views[b])["embed"] for b in held]
            tokens = [t for s in batch.micro_batches[task.mb].segments for t in s.tokens]
            rows = np.concatenate(table)[tokens].reshape(m, self.model.hidden)
        views[Buffer("hidden", task.mb)][:m] = rows

    def _pre_attn(self, task: Task, views: Views, sweep: Sweep) -> None:
        w, m = self._page(task, views), _rows(task, views)
        x = norm(views[Buffer("hidden", task.mb)][:m], w["attn_norm"])
        if any(buffer.name == "qkv" for buffer in views):
            packed = [x @ w[name].T for name in ("q", "k", "v")]
            _only(views, "qkv")[:m] = np.hstack(packed)  # [m, H d + 2 KV d]
            return
        views[Buffer("q")][:m] = x @ w["q"].T  # [m, H d]
        kv, row = _only(views, "kv", "kv_part", "kv_new"), 0
        for s in _batch(views).micro_batches[task.mb].segments:
            mine = x[row : row + s.rows]
            kv[0, s.sequence, s.start : s.kv_len] = mine @ w["k"].T
            kv[1, s.sequence, s.start : s.kv_len] = mine @ w["v"].T
            row += s.rows

    def _attn(self, task: Task, views: Views, sweep: Sweep) -> None:
        row, Q, KV = 0, self.model.q_size, self.model.kv_size
        for s in _batch(views).micro_batches[task.mb].segments:
            here = slice(row, row + s.rows)
            new = slice(s.start, s.kv_len)
            if any(buffer.name == "qkv_host" for buffer in views):  # the processor appends
                packed, kv = _only(views, "qkv_host")[here], views[Buffer("kv", task.layer)]
                kv[0, s.sequence, new], kv[1, s.sequence, new] = np.split(packed[:, Q:], [KV], 1)
                q, (k, v) = packed[:, :Q], kv[:, s.sequence, : s.kv_len]
            elif any(buffer.name == "kv_slot" for buffer in views):  # the rest was loaded
                q = views[Buffer("q")][here]
                cached = _only(views, "kv_slot")[:, s.sequence, : s.start]
                k, v = np.concatenate((cached, _only(views, "kv_new")[:, s.sequence, new]), 1)
            else:
                q = views[Buffer("q")][here]
                k, v = _only(views, "kv", "kv_part")[:, s.sequence, : s.kv_len]
            _only(views, "attended", "attended_host")[here] = attend(self.model, q, k, v)
            row += s.rows

    def _post_attn(self, task: Task, views: Views, sweep: Sweep) -> None:
        w, m = self._page(task, views), _rows(task, views)
        hidden = views[Buffer("hidden", task.mb)]
        hidden[:m] += _only(views, "attended")[:m] @ w["o"].T
        views[Buffer("normed", task.mb)][:m] = norm(hidden[:m], w["ffn_norm"])

    def _router(self, task: Task, views: Views, sweep: Sweep) -> None:
        w, m = self._page(task, views), _rows(task, views)
        ids, gates = views[Buffer("routing", task.mb)]
        ids[:m], gates[:m] = route(self.model, views[Buffer("normed", task.mb)][:m], w)

    def _expert(self, task: Task, views: Views, sweep: Sweep) -> None:
        self._one_expert(task, views, self._page(task, views))

    def _expert_up(self, task: Task, views: Views, sweep: Sweep) -> None:
        a, b = self._block(task)
        rows = [views[Buffer("normed", mb)][where] for mb, where, _ in self._routed(task, views)]
        x = np.concatenate(rows)
        views[INTER][: len(x), a:b] = ffn_in(x, self._page(task, views))

    def _expert_down(self, task: Task, views: Views, sweep: Sweep) -> None:
        (a, b), w, done = self._block(task), self._page(task, views), 0
        for mb, where, gates in self._routed(task, views):
            inter = views[INTER][done : done + len(where), : w["down"].shape[1]]
            views[Buffer("hidden", mb)][where, a:b] += gates[:, None] * (inter @ w["down"].T)
            done += len(where)

    def _moe(self, task: Task, views: Views, sweep: Sweep) -> None:
        pages = [p for p in self.case.pages if p.layer == task.layer and p.expert is not None]
        beside = self.case.policy.cpu_experts
        on_cpu = any(buffer.name == "partial_host" for buffer in views)
        if beside:
            pages = [page for page in pages if (page.id in beside) == on_cpu]
        if on_cpu:
            views = self._as_own(task, views)
        homes = ("page", "slot", "home")
        weights = [views[buffer] for buffer in task.reads if buffer.name in homes]
        held = dict(zip((page.id for page in pages), weights, strict=True))
        for expert in sorted({page.expert for page in pages}):
            found: dict[str, list[np.ndarray]] = {}
            for page in (p for p in pages if p.expert == expert):
                for name, rows in unpack(page, held[page.id]).items():
                    found.setdefault(name, []).append(rows)
            self._one_expert(
                replace(task, expert=expert),
                views,
                {n: np.concatenate(r) for n, r in found.items()},
            )

    def _as_own(self, task: Task, views: Views) -> Views:
        """What the processor received under the names of the device; its sum starts at 0."""
        result = _only(views, "partial_host")
        result[: _rows(task, views)] = 0
        names = {Buffer("normed", task.mb): _only(views, "normed_host")}
        if self.model.is_routed(task.layer):
            names[Buffer("routing", task.mb)] = _only(views, "routing_host")
        return {**views, **names, Buffer("hidden", task.mb): result}

    def _final(self, task: Task, views: Views, sweep: Sweep) -> None:
        last, w = [], self._page(task, views)
        parts = enumerate(_batch(views).micro_batches)
        self.hidden.append([views[Buffer("hidden", mb)][: m.rows].tobytes() for mb, m in parts])
        for mb, micro in enumerate(_batch(views).micro_batches):
            row = 0
            for s in micro.segments:
                row += s.rows
                if s.sample:
                    last.append(views[Buffer("hidden", mb)][row - 1])
        if last:
            views[FINAL][: len(last)] = norm(np.stack(last), w["final_norm"])

    def _logits(self, task: Task, views: Views, sweep: Sweep) -> None:
        (a, b), s = self._block(task), len(_batch(views).sampled)
        (w,) = self._page(task, views).values()
        views[LOGITS][:s, a:b] = views[FINAL][:s] @ w.T

    def _sample(self, task: Task, views: Views, sweep: Sweep) -> None:
        logits = views[LOGITS][: len(_batch(views).sampled)].copy()
        assert not np.isnan(logits).any(), "poison reached the logits"
        views[SAMPLED].value = [(int(row.argmax()), row) for row in logits]

    def _commit(self, task: Task, views: Views, sweep: Sweep) -> None:
        batch, requests = _batch(views), views[REQUESTS]
        for seq, (token, row) in zip(batch.sampled, views[SAMPLED].value, strict=True):
            requests.log.append((seq, len(requests.tokens[seq]) - 1, token, row))
            requests.tokens[seq].append(token)
        for mb in batch.micro_batches:
            for s in mb.segments:
                requests.kv_len[s.sequence] = s.kv_len

    # -- pieces --------------------------------------------------------------------------

    def _page(self, task: Task, views: Views) -> dict[str, np.ndarray]:
        (held,) = (v for b, v in views.items() if b.name in ("page", "slot"))
        return unpack(self.case.pages[task.page], held)

    def _block(self, task: Task) -> tuple[int, int]:
        """The rows of its tensors that the task's page holds."""
        first = self.case.pages[task.page].slices[0]
        return first.start, first.stop

    def _one_expert(self, task: Task, views: Views, w: dict[str, np.ndarray]) -> None:
        for mb, where, gates in self._routed(task, views):
            x = views[Buffer("normed", mb)][where]
            views[Buffer("hidden", mb)][where] += gates[:, None] * (ffn_in(x, w) @ w["down"].T)

    def _routed(self, task: Task, views: Views) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Per micro-batch: its number, the rows routed to the task's expert, their gates."""
        for mb, micro in enumerate(_batch(views).micro_batches):
            if task.mb not in (None, mb):
                continue
            where, gates = np.arange(micro.rows), np.ones(micro.rows)
            if self.model.is_routed(task.layer):
                ids, weight = views[Buffer("routing", mb)]
                assert (ids[: micro.rows] >= 0).all(), "routing read before it was written"
                where, column = np.nonzero(ids[: micro.rows] == task.expert)
                gates = weight[where, column]
            yield mb, where, gates


def _only(views: Views, *names: str) -> np.ndarray:
    """The view of the one buffer among ``views`` that has one of ``names``."""
    (found,) = (view for buffer, view in views.items() if buffer.name in names)
    return found


def _batch(views: Views) -> Batch:
    return views[BATCH].value


def _rows(task: Task, views: Views) -> int:
    return _batch(views).micro_batches[task.mb].rows


def _frozen(view: Any) -> Any:
    if isinstance(view, tuple):
        return tuple(_frozen(part) for part in view)
    if isinstance(view, np.ndarray):
        view = view.view()
        view.flags.writeable = False
    return view
