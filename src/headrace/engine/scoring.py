"""How likely a model finds a text: teacher-forced log-probabilities, and the perplexity.

Every row of a sweep draws: each token of the text is a segment of its own, whose KV the segments
before it wrote in the same sweep. So the arithmetic is that of any other run, law 10 included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.engine.layer_outputs import LayerOutputs
from headrace.engine.loaded import Loaded
from headrace.engine.session import lanes_as_threads
from headrace.engine.sweep import Sweep
from headrace.errors import BudgetError, UsageError
from headrace.kernels.select import select
from headrace.machines.machine import Body, Clock, Views
from headrace.memory.arena import Arena
from headrace.models.bodies import make_bodies
from headrace.models.workspace import Workspace
from headrace.planner.candidates import Situation, filled, smallest
from headrace.planner.plan import Overrides
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.hardware import Hardware
from headrace.specs.policy import Policy
from headrace.specs.scratch import SAMPLE_BLOCK_BYTES, SAMPLE_ROW_BYTES
from headrace.specs.units import format_bytes
from headrace.specs.workload import Workload

WINDOW = 1024
"""Tokens that are scored together, at most: no token looks further back."""

MOST_ROWS = 256


class Change(NamedTuple):
    """By which part perplexity grew, and the standard error of that: how much another text of the
    same kind and length might have said."""

    relative: float
    error: float


@dataclass(frozen=True)
class Score:
    """Log-probabilities of the tokens of a text, each given those before it, and the
    ``outputs`` of the layers for some of them."""

    logprobs: tuple[float, ...]
    outputs: LayerOutputs

    @property
    def tokens(self) -> int:
        """Tokens that were predicted."""
        return len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-sum(self.logprobs) / self.tokens)

    def change(self, after: Score) -> Change:
        """What became of the same text: exp of the mean loss of log-probability, less 1."""
        lost = [b - a for b, a in zip(self.logprobs, after.logprobs, strict=True)]
        ratio = math.exp(sum(lost) / len(lost))
        error = stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else math.inf
        return Change(ratio - 1, ratio * error)


def perplexity(
    loaded: Loaded,
    text: str,
    *,
    memory: int,
    clock: Clock,
    threads: int = 1,
    kernels: str = "auto",
    activations: str = "int8",
    on_tokens: Callable[[int], object] = lambda count: None,
) -> Score:
    """Perplexity of ``text`` within ``memory`` bytes: in windows of at most WINDOW tokens, the
    first token of each given. ``on_tokens`` hears how many more are done.

    Raises UsageError for a text of less than two tokens, BudgetError when memory is too small.
    """
    tokens = loaded.tokenizer.encode(text)
    if len(tokens) < 2:
        raise UsageError("text to score", expected="at least 2 tokens", got=len(tokens))
    window = min(WINDOW, loaded.model.max_positions, len(tokens))
    overrides = Overrides(threads=threads, kernels=kernels, activations=activations)
    policy, arena_bytes = scoring_policy(loaded, window, memory, overrides)
    outputs = LayerOutputs.of(loaded.model.layers, len(tokens))
    scorer = Scorer(loaded, policy, arena_bytes, clock, outputs)
    try:
        scored: list[float] = []
        for start in range(0, len(tokens) - 1, window):
            outputs.offset = start
            scored += scorer.logprobs(tokens[start : start + window], on_tokens)
    finally:
        scorer.close()
    return Score(tuple(scored), outputs)


def scoring_policy(
    loaded: Loaded, window: int, memory: int, overrides: Overrides
) -> tuple[Policy, int]:
    """The policy under which ``window`` tokens are scored within ``memory``, and the bytes of its
    arena: as many rows per sweep as fit, up to MOST_ROWS. Raises BudgetError."""
    at = Situation(
        loaded.model,
        loaded.pages,
        loaded.page_bytes,
        Hardware("no machine", {}),
        Workload.uniform(1, window, 1),
        memory,
        overrides,
    )
    for power in range(MOST_ROWS.bit_length() - 1, -1, -1):
        policy = filled(at, min(1 << power, window))
        if policy is not None:
            return policy, at.map_of(policy).arena_bytes
    least = at.map_of(smallest(at)).total_bytes
    raise BudgetError(
        "memory is too small to score a text",
        smallest_bytes=least,
        expected=f"at least {format_bytes(least)}",
        got=format_bytes(memory),
    )


class Scorer:
    """Holds the memory and the lanes of one policy. ``close`` gives them back. ``outputs`` keeps
    what the layers put out."""

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        arena_bytes: int,
        clock: Clock,
        outputs: LayerOutputs | None = None,
    ) -> None:
        self.loaded = loaded
        self.policy = policy
        self.arena = Arena("host", arena_bytes)
        self._phase = 0
        self._found: list[float] = []
        self._targets: list[int] = []
        kernels = select(policy.kernels, policy.threads, policy.activations)
        try:
            sizes = buffer_sizes(loaded.model, loaded.pages, policy, loaded.page_bytes)
            space = Workspace(loaded.model, loaded.table, policy, sizes, self.arena, kernels.turn)
            space.load_resident()
        except BaseException:
            self.arena.close()
            raise
        own: Mapping[Op, Body] = {Op.BIND: _nothing, Op.SAMPLE: self._score, Op.COMMIT: _nothing}
        bodies = {**make_bodies(loaded.model, loaded.table, policy, kernels), **own}
        if outputs is not None:
            bodies = outputs.watch(bodies)
        self._machine = lanes_as_threads(bodies, space, clock)

    def logprobs(
        self, tokens: Sequence[int], on_tokens: Callable[[int], object] = lambda count: None
    ) -> list[float]:
        """Log-probability of every token but the first, given those before it."""
        scored: list[float] = []
        for start in range(0, len(tokens) - 1, self.policy.max_rows):
            stop = min(start + self.policy.max_rows, len(tokens) - 1)
            scored += self._sweep(tokens, start, stop)
            on_tokens(stop - start)
        return scored

    def close(self) -> None:
        """Stop the lanes and free the memory."""
        self._machine.close()
        self.arena.close()

    def _sweep(self, tokens: Sequence[int], start: int, stop: int) -> list[float]:
        """Log-probabilities of the tokens that follow positions ``start:stop``."""
        policy, loaded = self.policy, self.loaded
        blocks = tuple(range(policy.kv_blocks))
        rows = [Segment(i, (tokens[i],), i, blocks, sample=True) for i in range(start, stop)]
        share = policy.mu
        micro_batches = tuple(
            MicroBatch(tuple(rows[mb * share : (mb + 1) * share]))
            for mb in range(policy.micro_batches)
        )
        sweep = Sweep(start)
        sweep.bind(Batch(micro_batches))
        self._targets, self._found = list(tokens[start + 1 : stop + 1]), []
        schedule = generate(loaded.model, loaded.pages, policy, self._phase)
        self._phase = next_phase(loaded.pages, policy, self._phase)
        self._machine.append(schedule, sweep).wait()
        return self._found

    def _score(self, task: Task, views: Views, sweep: Sweep) -> None:
        logits: Tensor = views[Buffer("logits")][: len(self._targets)]
        step = max(1, SAMPLE_BLOCK_BYTES // (SAMPLE_ROW_BYTES * logits.shape[1]))
        for start in range(0, len(logits), step):
            block = logits[start : start + step]
            wanted = torch.tensor(self._targets[start : start + step])
            chosen = block.gather(1, wanted[:, None])[:, 0]
            self._found += (chosen - block.logsumexp(-1)).tolist()


def _nothing(task: Task, views: Views, sweep: Sweep) -> None:
    """BIND and COMMIT: the batch is bound before, and nothing follows it."""
