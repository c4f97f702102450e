"""Whole engines on tiny random checkpoints: made once, planned with stock figures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from headrace.cli.toy_tokenizer import write_tokenizer
from headrace.engine.answers import Answered, Prompt
from headrace.engine.llm import LLM
from headrace.engine.session import Session, lanes_as_threads
from headrace.errors import BudgetError
from headrace.kernels import native
from headrace.machines.machine import Body, Clock, Machine, Views
from headrace.machines.orders import Order, list_order
from headrace.machines.stepper import Stepper
from headrace.models.workspace import Workspace
from headrace.planner.memory_map import memory_map
from headrace.planner.plan import Plan
from headrace.schedule.task import Buffer, Op, Task
from headrace.specs.policy import Policy
from headrace.specs.registry import known_hardware
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload
from tests.models import tiny

STOCK = known_hardware("cpu-2core").hardware
VOCAB = 101
PLENTY = 1 << 30

_DRAW = Random(5)
PROMPTS = [tuple(_DRAW.randrange(3, VOCAB) for _ in range(n)) for n in (3, 11, 1, 24, 7, 16)]


_LARGER = {
    "mixtral-e8": {"intermediate_size": 320, "num_hidden_layers": 4},
    "mixtral-e5-window-tied": {"intermediate_size": 640, "num_hidden_layers": 3},
    "olmoe-e64": {"intermediate_size": 96},
    "llama-gqa": {"intermediate_size": 1600, "num_hidden_layers": 6},
    "llama-mha-tied-biases": {"intermediate_size": 1600, "num_hidden_layers": 6},
}


def make_checkpoint(case: str, folder: Path) -> Path:
    """A random bf16 checkpoint of ``tiny.CASES`` with a tokenizer whose ids are characters.

    About 3 MB, since below one the buffers for streaming take more than they save."""
    tiny.build(case, folder, torch.bfloat16, **_LARGER[case])
    write_tokenizer(folder, VOCAB, 256)
    return folder


def open_llm(folder: Path, memory: int = PLENTY, **settings: Any) -> LLM:
    """An engine with one thread, exact KV, and figures of a machine that nobody measured."""
    return LLM(
        folder, memory=memory, **{"kv_dtype": "f32", "threads": 1, "hardware": STOCK, **settings}
    )


def greedy(tokens: int = 8, **changes: Any) -> SamplingParams:
    """The likeliest token, ``tokens`` times."""
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, **changes)


def workload(prompts: Sequence[Sequence[int]] = PROMPTS, tokens: int = 8) -> Workload:
    """The lengths of ``prompts``, outputs known."""
    return Workload(tuple(map(len, prompts)), (tokens,) * len(prompts), assumed=False)


def least_memory(folder: Path, job: Workload | None = None, **settings: Any) -> int:
    """The smallest budget that works, as the refusal of a smaller one names it."""
    with open_llm(folder, 1, **settings) as llm:
        try:
            llm.plan(job or workload())
        except BudgetError as refused:
            return refused.smallest_bytes
    raise AssertionError("one byte was enough")


def token_ids(outputs: Sequence[Any]) -> list[tuple[int, ...]]:
    """The tokens of every choice of every output."""
    return [choice.token_ids for output in outputs for choice in output.outputs]


def exactly(outputs: Iterable[Any]) -> list[Any]:
    """All that must be equal however a run was cut: tokens, and their log-probabilities digit by
    digit where kernels are native (torch's products are not row-invariant)."""
    choices = [choice for output in outputs for choice in output.outputs]
    if native.available():
        return [(choice.token_ids, choice.logprobs) for choice in choices]
    return [choice.token_ids for choice in choices]


def reference_tokens(
    folder: Path, prompts: Sequence[Sequence[int]], count: int
) -> list[tuple[int, ...]]:
    """What transformers draws greedily in fp32, end tokens and all."""
    model, answers = tiny.reference(folder), []
    with torch.no_grad():
        for prompt in prompts:
            drawn: list[int] = []
            new, past = list(prompt), None
            for _ in range(count):
                result = model(torch.tensor([new]), past_key_values=past, use_cache=True)
                past = result.past_key_values
                new = [int(result.logits[0, -1].argmax())]
                drawn += new
            answers.append(tuple(drawn))
    return answers


# -- sessions under a policy of our choice -------------------------------------------------

MachineFactory = Callable[[Mapping[Op, Body], Workspace, Clock], Machine]


@contextmanager
def session_of(
    llm: LLM, plan: Plan | None = None, machine: MachineFactory = lanes_as_threads, **changes: Any
) -> Iterator[Session]:
    """A session under the plan in force (or ``plan``) with ``changes`` to its policy."""
    policy = replace((plan or llm.current_plan).policy, **changes)
    loaded = llm.loaded
    held = memory_map(loaded.model, loaded.pages, policy, loaded.page_bytes)
    session = Session(
        loaded,
        policy,
        held.arena_bytes,
        llm.clock,
        context=llm.context,
        machine=machine,
        pick=(plan or llm.current_plan).schedule_for if not changes else None,
    )
    try:
        yield session
    finally:
        session.close()


def answers_of(
    session: Session,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    params: SamplingParams | None = None,
    record: Any = None,
) -> dict[str, Any]:
    """Key -> output of a whole run."""
    requests = [Prompt(f"p{i}", tuple(p), params or greedy()) for i, p in enumerate(prompts)]
    events = session.run(iter(requests), record)
    return {e.prompt.key: e.output for e in events if isinstance(e, Answered)}


def stepping(order: Order = list_order, poison: bool = True) -> MachineFactory:
    """A factory of steppers that spoil what nobody may read any more."""

    def make(bodies: Mapping[Op, Body], workspace: Workspace, clock: Clock) -> Machine:
        workspace.poison()
        return Stepper(bodies, workspace.view, order, workspace.poison if poison else None)

    return make


def watched(make: MachineFactory, logits: list[bytes]) -> MachineFactory:
    """``make``, and the bits of all sampled logits, sweep by sweep."""

    def watching(bodies: Mapping[Op, Body], workspace: Workspace, clock: Clock) -> Machine:
        def sample(task: Task, views: Views, sweep: Any) -> None:
            drawn = views[Buffer("logits")][: len(sweep.batch.sampled)]
            logits.append(drawn.numpy().tobytes())
            bodies[Op.SAMPLE](task, views, sweep)

        return make({**bodies, Op.SAMPLE: sample}, workspace, clock)

    return watching


class Trap:
    """Makes machines whose bodies raise when the trap is set: once, at a given turn of an op."""

    def __init__(self) -> None:
        self._left: dict[Op, int] = {}
        self._error: BaseException = AssertionError()

    def set(self, op: Op, turn: int, error: BaseException) -> None:
        """The ``turn``-th ``op`` from now on raises ``error``."""
        self._left, self._error = {op: turn}, error

    def __call__(self, bodies: Mapping[Op, Body], workspace: Workspace, clock: Clock) -> Machine:
        return lanes_as_threads({op: self._over(op, bodies[op]) for op in bodies}, workspace, clock)

    def _over(self, op: Op, body: Body) -> Body:
        def trapped(task: Task, views: Views, sweep: Any) -> None:
            left = self._left.get(op, 0)
            self._left[op] = left - 1
            if left == 1:
                raise self._error
            body(task, views, sweep)

        return trapped


def lane_threads() -> set[threading.Thread]:
    """The engine's threads that are alive."""
    return {t for t in threading.enumerate() if t.name.startswith("headrace-")}


def policy_of(llm: LLM, job: Workload | None = None) -> Policy:
    """Plan for ``job``; the policy chosen."""
    return llm.plan(job or workload()).policy
