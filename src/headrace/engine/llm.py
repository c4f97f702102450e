"""The offline interface: open a model, plan, answer prompts or a batch file."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.engine.answers import Answered, Delta, Prompt, Refused
from headrace.engine.engine import Event
from headrace.engine.hub import local_folder
from headrace.engine.loaded import Loaded
from headrace.engine.outputs import RequestOutput
from headrace.engine.probe import measure_machine, usable_threads
from headrace.engine.prompts import check_prompt, make_prompts, workload_of
from headrace.engine.record import Record
from headrace.engine.session import Session
from headrace.errors import BudgetError, ModelError, ParameterError, UsageError
from headrace.kernels.select import select
from headrace.memory.tiers import DefaultBudget, default_budget, free_bytes
from headrace.planner.candidates import Situation
from headrace.planner.interval import bias, half_width
from headrace.planner.plan import Overrides, Plan, activations_for
from headrace.planner.plan_file import PlanFile, follow
from headrace.planner.profile import Profile, weights_of
from headrace.planner.rules import best_plan
from headrace.planner.stored import restore_plan, store_plan
from headrace.schedule.work import WorkModel
from headrace.specs.faults import Faults, no_faults
from headrace.specs.hardware import DISK, Hardware
from headrace.specs.sampling import SamplingParams
from headrace.specs.units import format_bytes, parse_size
from headrace.specs.workload import Workload

Messages = Sequence[Mapping[str, Any]]
PromptLike = str | Sequence[int]


class LLM:
    """A model on this machine, within ``memory`` bytes for weights, KV, activations and scratch.

    ``memory`` is bytes or a size as "8GiB"; None takes the default budget. ``schedule``,
    ``max_seqs`` (sequences in a sweep) and ``max_rows`` (tokens in a sweep) override the plan's
    choice. ``activations`` says what weights are multiplied with: integer ones ``int8`` (the
    default where there are some) or ``f32``, bf16 ones ``f32`` or, if asked, ``bf16``.
    ``follow_routing`` lets the experts that stay in memory change with the routing, where sweeps
    read only what is routed. ``hardware`` spares the measurement of this machine, ``profile`` the
    part of it that does not depend on the model; ``faults`` are for tests. The first use measures,
    plans, and takes the memory; later calls keep the plan while it suits. Not thread-safe. Use as a
    context manager, or ``close`` it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: int | str | None = None,
        schedule: str | None = None,
        seed: int = 0,
        kv_dtype: str = "f16",
        max_seqs: int | None = None,
        max_rows: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        kernels: str = "auto",
        activations: str | None = None,
        direct: bool | None = None,
        follow_routing: bool = False,
        hardware: Hardware | None = None,
        profile: Profile | None = None,
        faults: Faults = no_faults,
    ) -> None:
        self.clock: Callable[[], float] = time.perf_counter  # noqa: TID251 (the outermost layer)
        faults("start.model")
        self.loaded = Loaded.open(local_folder(model), direct, faults)
        self.faults = faults
        self.seed = seed
        self.follow_routing = follow_routing
        self.kv_dtype = kv_dtype
        try:
            sizes = {"threads": threads, "max_seqs": max_seqs, "max_rows": max_rows}
            for name, size in sizes.items():
                if size is not None and size < 1:
                    raise UsageError(name, expected="1 or more", got=size)
            self.threads = threads or usable_threads()
            self._asked_memory = self._budget = None if memory is None else parse_size(memory)
            self.activations = activations_for(activations, self.loaded.model)
            self.kernels = select(kernels, self.threads, self.activations)
            self.context = _context(max_model_len, self.loaded.model.max_positions)
        except UsageError:
            self.loaded.close()
            raise
        self._overrides = Overrides(
            schedule=schedule,
            max_seqs=max_seqs,
            max_rows=max_rows,
            kv_dtype=kv_dtype,
            threads=self.threads,
            kernels=self.kernels.name,
            activations=self.activations,
        )
        self._budget_note: tuple[str, ...] = ()
        self._machine_note: tuple[str, ...] = ()
        self._hardware = hardware
        self.profile = profile
        self._plan: Plan | None = None
        self._planned: Workload | None = None  # what the plan was made for
        self._own_plan = False  # nobody asked for this plan: it may change as prompts do
        self._session: Session | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    @property
    def hardware(self) -> Hardware:
        """This machine, measured with this model when first asked for."""
        if self._hardware is None:
            self.faults("start.machine")
            known = self._known()
            measured = measure_machine(
                self.loaded,
                self.clock,
                threads=self.threads,
                kernels=self.kernels.name,
                activations=self.activations,
                kv_dtype=self.kv_dtype,
                capacity_bytes=self.budget,
                known=known,
            )
            gc.collect()  # objects in cycles still hold what the rehearsal took: the run needs it
            residuals = self.profile.residuals if self.profile and self.usual else ()
            error = half_width(residuals, measured.noise)
            self._hardware = replace(measured, bias=bias(residuals), error=error)
            self._machine_note = (_machine_said(self.profile, known, measured, residuals),)
        return self._hardware

    @property
    def usual(self) -> bool:
        """Whether runs have the threads and kernels that a profile of this machine is made with."""
        return self.threads == usable_threads() and self.kernels.name == select("auto", 1).name

    def _known(self) -> Hardware | None:
        """What the profile says of the machine, if it was made with the threads and kernels that
        will run."""
        if self.profile is None or not self.usual:
            return None
        streams = sum(self.loaded.page_bytes.values()) > self.budget
        return self.profile.known_for(self.loaded.model, self.kv_dtype, streams, self.activations)

    @property
    def budget(self) -> int:
        """Bytes that weights, ring, KV, activations and scratch may take together."""
        if self._budget is None:
            self.loaded.tokenizer.vocab_size  # noqa: B018 (loaded first: it counts as baseline)
            found = default_budget()
            self._budget, self._budget_note = found.budget_bytes, (_said(found),)
        return self._budget

    @property
    def numerics(self) -> str:
        """What of this run, beside weights and seed, decides a result's bits."""
        integers = "" if self.loaded.model.integers is None else f"-{self.kernels.integers}"
        return f"{self.kernels.numerics}{integers}-kv_{self.kv_dtype}"

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
        if given.get("top_k") == -1:  # some write "no limit" so
            given["top_k"] = 0
        found = {**given, "max_tokens": max_tokens}
        try:
            SamplingParams(**found)
        except ParameterError as error:
            raise ModelError("generation_config.json of the checkpoint", got=str(error)) from error
        return found

    def plan(self, workload: Workload, stored: object = None) -> Plan:
        """Choose the policy for ``workload``; later calls of this object run under it.

        ``stored`` is what ``stored_plan`` was when an earlier run of the same job began: that
        plan is kept if it still fits. Raises BudgetError when the budget cannot work, naming
        the smallest one that can.
        """
        self._end_session()
        at = self._situation(workload)
        kept = restore_plan(stored, at, self._asked_memory)
        plan = kept or best_plan(at)
        notes = (*self._budget_note, *self._machine_note, *self._format_note(), *plan.notes)
        self._plan = replace(plan, notes=notes)
        self._planned, self._own_plan = workload, False
        self.faults("start.plan")
        return self._plan

    def follow(self, asked: PlanFile, name: str, workload: Workload) -> Plan:
        """Run under the plan of a file called ``name``, as it stands, from now on. Open this object
        with the plan's own threads, kernels, activations and KV format.

        Raises DocumentError where the plan cannot be honoured with this model, machine or job.
        """
        self._end_session()
        asked.check_model(self.loaded.model, self.loaded.pages, name)
        policy = replace(asked.policy, kernels=self.kernels.name, threads=self.threads)
        plan = follow(replace(asked, policy=policy), self._situation(workload), name)
        said = f"the plan of {name}, as it stands"
        notes = (*self._budget_note, *self._machine_note, *self._format_note(), *plan.notes, said)
        self._plan, self._planned, self._own_plan = replace(plan, notes=notes), workload, False
        self.faults("start.plan")
        return self._plan

    def stored_plan(self) -> dict[str, Any]:
        """The plan in force as plain data, for ``plan``. Raises UsageError before there is one."""
        at = self._situation(self._planned or Workload((), ()))
        return store_plan(self.current_plan, at, self._asked_memory)

    def use(self, plan: Plan) -> None:
        """Run under ``plan`` from now on, as a comparison of schedules under one policy does."""
        self._end_session()
        self._plan, self._planned, self._own_plan = plan, None, False

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt (text or token ids); outputs in the order of ``prompts``.

        ``params`` is one SamplingParams for all, or one each. Raises LineError for a prompt
        that cannot run, before any work.
        """
        single = isinstance(prompts, str) or _is_tokens(prompts)
        many: list[Any] = [prompts] if single else list(prompts)
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
        """Answer one prompt (or conversation) piece by piece as the text becomes safe.

        Raises UsageError when ``params`` asks for several choices."""
        if params is not None and params.n > 1:
            raise UsageError("choices of a stream", expected=1, got=params.n)
        prompts = self._prompts([self.encode(prompt)], [None], params)
        with closing(self._ready(prompts).run(iter(prompts), stream=True)) as events:
            for event in events:
                if isinstance(event, Delta):
                    yield event.text
                elif isinstance(event, Refused):
                    raise event.error

    def encode(self, prompt: PromptLike | Messages) -> tuple[int, ...]:
        """Token ids of a text, of ids, or of a conversation."""
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return tuple(self.tokenizer.encode_chat(prompt))
        return tuple(self.tokenizer.encode(prompt))

    def check(self, prompt: Prompt) -> None:
        """Raise ParameterError or LineError if ``prompt`` cannot run with this model."""
        check_prompt(prompt, self.loaded.model.vocab, self.tokenizer.eos_ids, self.context)

    def events(self, prompts: Iterable[Prompt], record: Record | None = None) -> Generator[Event]:
        """Run tokenised prompts under the plan made before; for batch jobs and benchmarks."""
        return self._open_session().run(iter(prompts), record)

    def new_record(self, keep_traces: bool = False) -> Record:
        """An empty record of a run under the current plan."""
        policy = self.current_plan.policy
        work = WorkModel(self.loaded.model, self.loaded.pages, policy)
        return Record(self.loaded.table, work, keep_traces, hardware=self._hardware)

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

    def _format_note(self) -> tuple[str, ...]:
        model = self.loaded.model
        if model.integers is None and self.activations != "bf16":
            return ()
        return (f"weights: {weights_of(model)}, multiplied with activations in {self.activations}",)

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
        with closing(self._ready(prompts).run(iter(prompts))) as events:
            for event in events:
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
        prompts = make_prompts(encoded, texts, params)
        for prompt in prompts:
            self.check(prompt)
        return prompts

    def _ready(self, prompts: Sequence[Prompt]) -> Session:
        """A session whose KV holds the longest of ``prompts``; plans again if need be."""
        workload = workload_of(prompts, self.context)
        if self._plan is None or self._outgrown(self._plan, workload):
            self.plan(workload)
            self._own_plan = True
        return self._open_session()

    def _outgrown(self, plan: Plan, workload: Workload) -> bool:
        """Whether ``plan`` cannot run ``workload``, or was made, unasked, for a far smaller one."""
        if workload.longest > plan.policy.kv_blocks * plan.policy.kv_block:
            return True
        before = self._planned.requests if self._own_plan and self._planned else 1 << 30
        return workload.requests > plan.policy.max_seqs and workload.requests >= 2 * before

    def _situation(self, workload: Workload) -> Situation:
        return Situation(
            self.loaded.model,
            self.loaded.pages,
            self.loaded.page_bytes,
            self.hardware,
            workload,
            self.budget,
            self._overrides,
        )

    def _open_session(self) -> Session:
        if self._session is None:
            plan = self.current_plan
            _check_free(plan)
            self._session = Session(
                self.loaded,
                plan.policy,
                plan.memory.arena_bytes,
                self.clock,
                seed=self.seed,
                context=self.context,
                pick=plan.schedule_for,
                follow_routing=self.follow_routing,
                faults=self.faults,
            )
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _context(asked: int | None, most: int) -> int:
    if asked is not None and not 1 <= asked <= most:
        raise UsageError("max_model_len", expected=f"1 to {most}", got=asked)
    return asked or most


def _check_free(plan: Plan) -> None:
    """Refuse to begin what the machine has no memory for any more. Raises BudgetError."""
    need, free = plan.memory.total_bytes, free_bytes()
    if need > free:
        enough = plan.smallest_bytes <= free
        raise BudgetError(
            "less memory is free than the plan takes",
            smallest_bytes=plan.smallest_bytes,
            expected=f"{format_bytes(need)} free",
            got=f"{format_bytes(free)}",
            hint=f"end other programs{f', or --memory {free * 9 // 10}' if enough else ''}",
        )


def _is_tokens(prompts: object) -> bool:
    return isinstance(prompts, list | tuple) and bool(prompts) and isinstance(prompts[0], int)


def _machine_said(
    profile: Profile | None,
    known: Hardware | None,
    measured: Hardware,
    residuals: Sequence[float],
) -> str:
    """Where the machine's rates come from, and what earlier runs showed, for the plan."""
    if profile is None:
        return "machine: measured now, for this job (headrace calibrate keeps a profile)"
    longer = math.expm1(bias(residuals))
    seen = f"{len(residuals)} runs compared with predictions: {longer:+.1%} is allowed for"
    if not residuals:
        seen = "no run compared with its prediction yet"
    if known is None:
        made = f"the profile of {profile.made} has other formats or threads"
        return f"machine: measured now; {made}; {seen}"
    ratio = measured.roofs[DISK] / known.roofs[DISK]
    disk = "its disk as fast as then" if ratio == 1 else f"its disk at {ratio:.0%} of what it was"
    return f"machine: profile of {profile.made}, {disk}, {seen}"


def _said(budget: DefaultBudget) -> str:
    """Where the default budget comes from, for the plan."""
    limit = "no cgroup limit"
    if budget.cgroup_bytes is not None:
        limit = f"{format_bytes(budget.cgroup_bytes)} in the cgroup"
    return (
        f"budget: 0.9 x what is free ({format_bytes(budget.available_bytes)}, {limit}) less "
        f"{format_bytes(budget.baseline_bytes)} that Python, torch and tokenizer take"
    )
