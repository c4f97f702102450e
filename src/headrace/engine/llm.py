"""The offline interface: open a model, plan, answer prompts or a batch file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.engine.answers import Answered, Delta, Prompt, as_request, most_tokens
from headrace.engine.engine import Event, Refused
from headrace.engine.hub import local_folder
from headrace.engine.loaded import Loaded
from headrace.engine.outputs import RequestOutput
from headrace.engine.probe import measure_machine, usable_threads
from headrace.engine.record import Record
from headrace.engine.sampler import check_params
from headrace.engine.session import Session
from headrace.engine.summary import numerics_version
from headrace.errors import UsageError
from headrace.memory.tiers import default_budget
from headrace.planner.plan import Overrides, Plan
from headrace.planner.rules import make_plan
from headrace.schedule.work import WorkModel
from headrace.specs.hardware import Hardware
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

Messages = Sequence[Mapping[str, Any]]
PromptLike = str | Sequence[int]


class LLM:
    """A model on this machine, within ``memory`` bytes for weights, KV, activations and scratch.

    ``memory`` None takes the default budget. ``schedule``, ``max_seqs`` (sequences in a sweep)
    and ``max_rows`` (tokens in a sweep) override the plan's choice. The first use measures the
    machine, plans, and takes the memory; later calls keep the plan. Not thread-safe. Use as a
    context manager, or ``close`` it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: int | None = None,
        schedule: str | None = None,
        seed: int = 0,
        kv_dtype: str = "f16",
        max_seqs: int | None = None,
        max_rows: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        direct: bool | None = None,
    ) -> None:
        self.clock: Callable[[], float] = time.perf_counter  # noqa: TID251 (the outermost layer)
        self.loaded = Loaded.open(local_folder(model), direct)
        self.seed = seed
        self.kv_dtype = kv_dtype
        self.threads = threads or usable_threads()
        self.context = self._context(max_model_len)
        self._overrides = Overrides(
            schedule=schedule,
            max_seqs=max_seqs,
            max_rows=max_rows,
            kv_dtype=kv_dtype,
            threads=self.threads,
        )
        self._memory = memory
        self._hardware: Hardware | None = None
        self._plan: Plan | None = None
        self._session: Session | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    @property
    def hardware(self) -> Hardware:
        """This machine, measured with this model when first asked for."""
        if self._hardware is None:
            self._hardware = measure_machine(
                self.loaded,
                self.clock,
                threads=self.threads,
                kv_dtype=self.kv_dtype,
                capacity_bytes=self.budget,
            )
        return self._hardware

    @property
    def budget(self) -> int:
        """Bytes that weights, ring, KV, activations and scratch may take together."""
        if self._memory is None:
            self.loaded.tokenizer.vocab_size  # noqa: B018 (loaded first: it counts as baseline)
            self._memory = default_budget().budget_bytes
        return self._memory

    @property
    def numerics(self) -> str:
        """What of this run, beside weights and seed, decides a result's bits."""
        return numerics_version(self.kv_dtype, self.threads)

    def signature(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """What results depend on; an output of another signature is not resumed.

        ``defaults`` are the sampling parameters where a line is silent.
        """
        own = {"seed": self.seed, "numerics": self.numerics, "context": self.context}
        return {**self.loaded.identity(), **own, "sampling_defaults": dict(defaults)}

    def sampling_defaults(self, max_tokens: int) -> dict[str, Any]:
        """Sampling parameters where a line is silent: the checkpoint's generation_config, as
        vLLM reads it, and at most ``max_tokens`` tokens."""
        known = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        config = self.loaded.checkpoint.generation_config
        given = {k: config[k] for k in known if isinstance(config.get(k), int | float)}
        return {**given, "max_tokens": max_tokens}

    def plan(self, workload: Workload) -> Plan:
        """Choose the policy for ``workload``; later calls of this object run under it.

        Raises BudgetError when the budget cannot work, naming the smallest one that can.
        """
        self._end_session()
        self._plan = make_plan(
            self.loaded.model,
            self.loaded.pages,
            self.loaded.page_bytes,
            self.hardware,
            workload,
            self.budget,
            self._overrides,
        )
        return self._plan

    def use(self, plan: Plan) -> None:
        """Run under ``plan`` from now on, as a comparison of schedules under one policy does."""
        self._end_session()
        self._plan = plan

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt (text or token ids); outputs in the order of ``prompts``.

        ``params`` is one SamplingParams for all, or one each. Raises LineError for a prompt
        that cannot run, before any work.
        """
        many: Sequence[PromptLike]
        many = [prompts] if isinstance(prompts, str) or _is_tokens(prompts) else list(prompts)
        encoded = [tuple(self.tokenizer.encode(p)) for p in many]
        texts = [p if isinstance(p, str) else None for p in many]
        return self._generate(encoded, texts, params)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation through the model's chat template."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        many: Sequence[Any] = [messages] if single else list(messages)
        encoded = [tuple(self.tokenizer.encode_chat(m)) for m in many]
        return self._generate(encoded, [None] * len(encoded), params)

    def stream(
        self, prompt: PromptLike | Messages, params: SamplingParams | None = None
    ) -> Iterator[str]:
        """Answer one prompt (or conversation) piece by piece as the text becomes safe."""
        tokens = self.encode(prompt)
        (request,) = self._prompts([tokens], [None], params)
        session = self._ready([request])
        for event in session.run(iter([request]), stream=True):
            if isinstance(event, Delta):
                yield event.text
            elif isinstance(event, Refused):
                raise event.error

    def encode(self, prompt: PromptLike | Messages) -> tuple[int, ...]:
        """Token ids of a text, of ids, or of a conversation."""
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return tuple(self.tokenizer.encode_chat(prompt))
        return tuple(self.tokenizer.encode(prompt))

    def events(self, prompts: Iterable[Prompt], record: Record | None = None) -> Iterator[Event]:
        """Run tokenised prompts under the plan made before; for batch jobs and benchmarks."""
        return self._open_session().run(iter(prompts), record)

    def new_record(self, keep_traces: bool = False) -> Record:
        """An empty record of a run under the current plan."""
        policy = self.current_plan.policy
        work = WorkModel(self.loaded.model, self.loaded.pages, policy)
        return Record(self.loaded.table, work, keep_traces)

    @property
    def current_plan(self) -> Plan:
        """The plan in force. Raises UsageError before there is one."""
        if self._plan is None:
            raise UsageError("no plan yet", hint="call plan(workload) first")
        return self._plan

    @property
    def session(self) -> Session:
        """The run's memory and lanes, taken when first asked for."""
        return self._open_session()

    def close(self) -> None:
        """Give memory, threads and files back. Idempotent."""
        self._end_session()
        self.loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(
        self,
        encoded: Sequence[tuple[int, ...]],
        texts: Sequence[str | None],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        prompts = self._prompts(encoded, texts, params)
        if not prompts:
            return []
        outputs: dict[str, RequestOutput] = {}
        for event in self._ready(prompts).run(iter(prompts)):
            if isinstance(event, Refused):
                raise event.error
            if isinstance(event, Answered):
                outputs[event.prompt.key] = event.output
        return [outputs[p.key] for p in prompts]

    def _prompts(
        self,
        encoded: Sequence[tuple[int, ...]],
        texts: Sequence[str | None],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Prompt]:
        """Requests with their keys; refuses what cannot run before anything is done."""
        one = params is None or isinstance(params, SamplingParams)
        each = [params or SamplingParams()] * len(encoded) if one else list(params)  # type: ignore[arg-type]
        if len(each) != len(encoded):
            raise UsageError(
                "sampling parameters", expected=f"one, or {len(encoded)}", got=len(each)
            )
        prompts = [
            Prompt(str(i), tokens, p, text)
            for i, (tokens, text, p) in enumerate(zip(encoded, texts, each, strict=True))
        ]
        for prompt in prompts:
            check_params(prompt.params, self.loaded.model.vocab, self.tokenizer.eos_ids)
            as_request(prompt, self.context)
        return prompts

    def _ready(self, prompts: Sequence[Prompt]) -> Session:
        """A session whose KV holds the longest of ``prompts``; plans again if need be."""
        workload = workload_of(prompts, self.context)
        if self._plan is None or _needs_more(self._plan, workload):
            self.plan(workload)
        return self._open_session()

    def _open_session(self) -> Session:
        if self._session is None:
            plan = self.current_plan
            self._session = Session(
                self.loaded,
                plan.policy,
                plan.memory.arena_bytes,
                self.clock,
                seed=self.seed,
                context=self.context,
                pick=lambda rows: pick_schedule(plan, rows),
            )
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _context(self, asked: int | None) -> int:
        most = self.loaded.model.max_positions
        if asked is not None and not 1 <= asked <= most:
            raise UsageError("max_model_len", expected=f"1 to {most}", got=asked)
        return asked or most


def workload_of(prompts: Sequence[Prompt], context: int) -> Workload:
    """Lengths of ``prompts``, every choice a sequence; outputs assumed at half their limit
    unless EOS is ignored."""
    each = [(p, most_tokens(p, context)) for p in prompts for _ in range(p.params.n)]
    return Workload(
        prompt_lens=tuple(len(p.tokens) for p, _ in each),
        gen_lens=tuple(most if p.params.ignore_eos else -(-most // 2) for p, most in each),
        max_lens=tuple(most for _, most in each),
        assumed=not all(p.params.ignore_eos for p in prompts),
    )


def pick_schedule(plan: Plan, sequences: int) -> str:
    """The plan's schedule, or ``on_demand`` once so few sequences are left that it is faster."""
    if plan.policy.schedule == "stream" and sequences <= plan.on_demand_rows:
        return "on_demand"
    return plan.policy.schedule


def _needs_more(plan: Plan, workload: Workload) -> bool:
    return workload.longest > plan.policy.kv_blocks * plan.policy.kv_block


def _is_tokens(prompts: object) -> bool:
    return isinstance(prompts, list | tuple) and bool(prompts) and isinstance(prompts[0], int)
