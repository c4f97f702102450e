"""Op bodies: what each task of a schedule does to its buffers.

Shapes: rows r of one micro-batch, hidden D, heads H, KV heads KV, head width d, experts E,
top_k k, FFN width W, sampled rows s, vocab V. Buffers are allocated for the policy's maxima;
bodies use the first rows of them. An empty micro-batch or an unrouted expert costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.reference import AttentionRule, RouterRule
from headrace.kernels.scratch import Scratch
from headrace.kernels.select import Kernels, select
from headrace.machines.machine import Body, Views
from headrace.memory.pages import PageTable
from headrace.models.ahead import Ahead
from headrace.models.ffn import Ffn
from headrace.models.sweep import Indexer, RowIndex, Sweep, nothing_to_do
from headrace.models.weights import Weight, Weights
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy
from headrace.specs.scratch import attention_tile, tile_elements

_SCRATCH = Buffer("scratch")


def make_bodies(
    model: ModelSpec, table: PageTable, policy: Policy, kernels: Kernels | None = None
) -> Mapping[Op, Body]:
    """Bodies of all arithmetic and of the reads; BIND, SAMPLE and COMMIT are the engine's.

    ``kernels`` None takes those that ``policy`` names.
    ``views`` hold torch tensors as ``Workspace.view`` makes them; ``sweep`` is a
    ``models.sweep.Sweep``. Every body is safe to run beside reads, not beside another body of
    the compute lane (they share scratch).
    """
    kernels = kernels or select(policy.kernels, policy.threads, policy.activations)
    bodies = _Bodies(model, table, policy, kernels)
    ffn = Ffn(model, table, bodies.indexer, kernels, bodies.weights, bodies.ahead)
    return {
        Op.READ_ROWS: bodies.read_rows,
        Op.READ_PAGE: bodies.read_page,
        Op.EMBED: bodies.embed,
        Op.PRE_ATTN: bodies.pre_attention,
        Op.ATTN: bodies.attention,
        Op.POST_ATTN: bodies.post_attention,
        Op.ROUTER: bodies.router,
        Op.EXPERT: ffn.page,
        Op.EXPERT_UP: ffn.page,
        Op.EXPERT_DOWN: ffn.page,
        Op.MOE: ffn.layer,
        Op.FINAL: bodies.final,
        Op.LOGITS: bodies.logits,
    }


class _Bodies:
    def __init__(
        self, model: ModelSpec, table: PageTable, policy: Policy, kernels: Kernels
    ) -> None:
        self.model = model
        self.kernels = kernels
        self.table = table
        self.pages = {page.id: page for page in table.pages}
        self.tile = attention_tile(model, policy)
        self.mu = policy.mu
        self._pieces: _Lent | None = None
        self.weights = Weights(table)
        self.ahead = Ahead(table.pages, policy.resident, self.weights, kernels.fetch)
        self.indexer = Indexer(model, policy, kernels)
        self.attention_rule = AttentionRule(model.norm_eps, model.head_dim, model.clip_qkv)
        self.router_rule = RouterRule(renormalise=model.renormalise)

    def read_rows(self, task: Task, views: Views, sweep: Sweep) -> None:
        """Embedding rows of the batch, in row order."""
        tokens = [t for m in sweep.batch.micro_batches for s in m.segments for t in s.tokens]
        rows = views[Buffer("rows")].view(torch.uint8).view(-1)
        sweep.binding.row_bytes = self.table.read_rows(tokens, memoryview(rows.numpy()))

    def read_page(self, task: Task, views: Views, sweep: Sweep) -> None:
        """One page into its slot; nothing when the routing is known and spares the expert."""
        assert task.page is not None
        moved = 0
        if not nothing_to_do(task, sweep):
            slot = next(views[b] for b in task.writes if b.name == "slot")
            moved = self.table.read(task.page, memoryview(slot.numpy()))
        sweep.binding.page_bytes[task.page] = moved

    def embed(self, task: Task, views: Views, sweep: Sweep) -> None:
        """hidden = rows of the embedding table."""
        index = self._index(task, sweep)
        hidden = views[Buffer("hidden", _mb(task))][: index.rows]
        stored = views.get(Buffer("rows"))
        if stored is not None:
            self.kernels.widen_rows(stored[index.offset : index.offset + index.rows], hidden)
            return
        for buffer in task.reads:
            if buffer.name == "page":
                (piece,) = self.pages[buffer.index].slices
                table = self.weights.of(buffer.index, views[buffer])[piece.tensor]
                scratch = Scratch(views[_SCRATCH])
                self.kernels.embed(index.tokens, table, piece.start, hidden, scratch)

    def pre_attention(self, task: Task, views: Views, sweep: Sweep) -> None:
        """q, k and v of the normed rows; k and v go to the cache."""
        index = self._index(task, sweep)
        if not index.rows:
            return
        lent = self._lent(views[_SCRATCH])
        self.kernels.attention_inputs(
            views[Buffer("hidden", _mb(task))], self._layer(task, views), self.attention_rule,
            index.cos, index.sin, views[Buffer("q")], lent.k, lent.v, Scratch(lent.rest),
        )  # fmt: skip
        kv = views[Buffer("kv", _layer(task))]
        self.kernels.append(lent.k, lent.v, kv, index.slots, lent.temp)
        self.ahead.output(_layer(task))

    def attention(self, task: Task, views: Views, sweep: Sweep) -> None:
        """attended = softmax(q K^T) V over the cache, the chunk's own keys included."""
        index = self._index(task, sweep)
        self.kernels.attend(
            views[Buffer("q")],
            views[Buffer("kv", _layer(task))],
            index.attention,
            views[Buffer("attended")],
            views[_SCRATCH],
            self.tile,
            self.model.sliding_window,
        )

    def post_attention(self, task: Task, views: Views, sweep: Sweep) -> None:
        """hidden += output projection; normed = norm(hidden)."""
        r = self._index(task, sweep).rows
        if not r:
            return
        self.kernels.attention_output(
            views[Buffer("attended")], self._layer(task, views), self.model.norm_eps,
            views[Buffer("hidden", _mb(task))], views[Buffer("normed", _mb(task))],
            Scratch(views[_SCRATCH]), r,
        )  # fmt: skip

    def router(self, task: Task, views: Views, sweep: Sweep) -> None:
        """Experts and gates of every row; adds the counts to ``binding.routed``."""
        r, layer = self._index(task, sweep).rows, _layer(task)
        routing = views[Buffer("routing", _mb(task))]
        if r:
            normed = views[Buffer("normed", _mb(task))]
            router = self._layer(task, views)["router"]
            scratch = Scratch(views[_SCRATCH])
            self.kernels.route(normed, router, self.router_rule, routing, scratch, rows=r)
        else:
            routing.starts.zero_()
        routed, counts = sweep.binding.routed, tuple(routing.counts())
        if _mb(task):
            counts = tuple(map(add, routed[layer], counts))
        routed[layer] = counts
        first = next((e for e, count in enumerate(counts) if count), None)
        if first is not None:
            self.ahead.expert(layer, first)

    def final(self, task: Task, views: Views, sweep: Sweep) -> None:
        """Final norm of the rows that draw a token."""
        assert task.page is not None
        weight = self.weights.of(task.page, views[Buffer("page", task.page)])["final_norm"]
        for mb in range(len(sweep.batch.micro_batches)):
            index = self.indexer.of(sweep, mb)
            count = index.sampled.numel()
            hidden, scratch = views[Buffer("hidden", mb)], Scratch(views[_SCRATCH])
            out = views[Buffer("final")][index.first_sample : index.first_sample + count]
            self.kernels.gather_norm(
                hidden, index.sampled, weight, self.model.norm_eps, out, scratch
            )

    def logits(self, task: Task, views: Views, sweep: Sweep) -> None:
        """A block of columns of the logits."""
        assert task.page is not None
        (piece,) = self.pages[task.page].slices
        count = len(sweep.batch.sampled)
        if not count:
            return
        weight = self.weights.of(task.page, _page_view(task, views))[piece.tensor]
        tile = Scratch(views[_SCRATCH]).take(tile_elements(*weight.shape))
        out = views[Buffer("logits")][:count, piece.start : piece.stop]
        self.kernels.linear(views[Buffer("final")][:count], weight, out, tile)
        self.ahead.head(self.pages[task.page].part + 1)

    def _lent(self, scratch: Tensor) -> _Lent:
        """The same pieces of the same scratch: kernels know them again."""
        if self._pieces is None or self._pieces.scratch is not scratch:
            taken, shape = Scratch(scratch), (self.mu, self.model.kv_size)
            k, v = taken.take(*shape), taken.take(*shape)
            temp = taken.take(self.mu * self.model.kv_size)
            self._pieces = _Lent(scratch, k, v, temp, taken.rest())
        return self._pieces

    def _index(self, task: Task, sweep: Sweep) -> RowIndex:
        return self.indexer.of(sweep, _mb(task))

    def _layer(self, task: Task, views: Views) -> Mapping[str, Weight]:
        assert task.page is not None
        return self.weights.of(task.page, _page_view(task, views))


class _Lent(NamedTuple):
    """Keys and values on their way to the cache, fp32 [mu, KV d] each, and as much again to
    round them in; the rest of ``scratch``."""

    scratch: Tensor
    k: Tensor
    v: Tensor
    temp: Tensor
    rest: Tensor


def _page_view(task: Task, views: Views) -> Tensor:
    return next(views[b] for b in task.reads if b.name in ("page", "slot"))


def _mb(task: Task) -> int:
    assert task.mb is not None
    return task.mb


def _layer(task: Task) -> int:
    assert task.layer is not None
    return task.layer
