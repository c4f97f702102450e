"""Answers in the making: tokens and text of every sequence until its request is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace.batching import request as batching
from headrace.engine.outputs import CompletionOutput, RequestOutput, token_logprobs
from headrace.engine.sampler import SampledToken, SampleRow
from headrace.errors import HeadraceError, LineError
from headrace.specs.sampling import SamplingParams


@dataclass(frozen=True)
class Prompt:
    """One request as the engine takes it: tokens, how to draw, and the caller's ``payload``."""

    key: str
    tokens: tuple[int, ...]
    params: SamplingParams
    text: str | None = None
    payload: Any = None


class Answered(NamedTuple):
    """A request whose choices have all ended."""

    prompt: Prompt
    output: RequestOutput


class Refused(NamedTuple):
    """A request that cannot run, or cannot go on, and why."""

    prompt: Prompt
    error: HeadraceError


class Delta(NamedTuple):
    """Newly safe text of one choice, for streaming."""

    key: str
    choice: int
    text: str


@dataclass
class _Answer:
    """One choice of one request."""

    prompt: Prompt
    choice: int
    group: int
    detokenizer: Any
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    drawn: list[SampledToken] = field(default_factory=list)
    stop_reason: str | int | None = None
    output: CompletionOutput | None = None
    fault: HeadraceError | None = None


class Answers:
    """Every open answer, by sequence id. Used under the engine's lock."""

    def __init__(
        self,
        eos_ids: frozenset[int],
        new_detokenizer: Callable[[Prompt], Any],
        token_bytes: Callable[[int], bytes],
        context: int,
        keep_deltas: bool = False,
    ) -> None:
        self._eos = eos_ids
        self._token_bytes = token_bytes
        self._new_detokenizer = new_detokenizer
        self._context = context
        self._keep_deltas = keep_deltas
        self._open: dict[int, _Answer] = {}
        self._whole: dict[int, list[_Answer]] = {}
        self._ready: deque[Delta | Answered | Refused] = deque()

    def open(self, sequences: Iterable[batching.Sequence], prompt: Prompt) -> None:
        """Start an answer for each sequence of ``prompt``."""
        for sequence in sequences:
            group = sequence.id - sequence.choice  # the same for all choices, and no other's
            self._open[sequence.id] = _Answer(
                prompt, sequence.choice, group, self._new_detokenizer(prompt)
            )

    def rows(self, sequences: Sequence[int]) -> list[SampleRow]:
        """What the sampler must know of each row, in the order of ``sequences``."""
        return [self._row(self._open[s]) for s in sequences]

    def accept(
        self, sequences: Sequence[int], drawn: Sequence[SampledToken]
    ) -> tuple[dict[int, int], set[int]]:
        """Take one sweep's tokens; returns (sequence -> token, sequences that ended).

        A choice whose logits were not finite ends; its request is refused once all have.
        """
        tokens, ended = {}, set()
        for sequence, sample in zip(sequences, drawn, strict=True):
            tokens[sequence] = sample.token
            if self._push(self._open[sequence], sample):
                self._close(self._open.pop(sequence))
                ended.add(sequence)
        return tokens, ended

    def pop(self) -> Delta | Answered | Refused | None:
        """What became ready first and was not popped yet; None when there is nothing."""
        return self._ready.popleft() if self._ready else None

    def clear(self) -> None:
        """Forget what is open; what is ready stays."""
        self._open.clear()
        self._whole.clear()

    def _row(self, answer: _Answer) -> SampleRow:
        return SampleRow(
            params=answer.prompt.params,
            key=answer.prompt.key,
            choice=answer.choice,
            position=len(answer.tokens),
            prompt=answer.prompt.tokens,
            generated=answer.tokens,
            eos_ids=self._eos,
        )

    def _push(self, answer: _Answer, sample: SampledToken) -> bool:
        """Add one token; True when the answer is complete."""
        if sample.fault is not None:
            answer.fault = sample.fault
            return self._end(answer, "error")
        params, token = answer.prompt.params, sample.token
        answer.tokens.append(token)
        if params.logprobs is not None:
            answer.drawn.append(sample)
        count = len(answer.tokens)
        at_eos = token in self._eos and not params.ignore_eos
        if (at_eos or token in params.stop_token_ids) and count > params.min_tokens:
            answer.stop_reason = None if at_eos else token
            return self._end(answer, "stop")
        self._emit(answer, answer.detokenizer.push(token))
        if answer.detokenizer.stopped:
            answer.stop_reason = answer.detokenizer.stop_string
            return self._end(answer, "stop")
        if count >= most_tokens(answer.prompt, self._context):
            return self._end(answer, "length")
        return False

    def _end(self, answer: _Answer, reason: str) -> bool:
        if not answer.detokenizer.stopped:
            self._emit(answer, answer.detokenizer.finish())
        if answer.detokenizer.stopped and reason == "length":
            reason, answer.stop_reason = "stop", answer.detokenizer.stop_string
        asked = answer.prompt.params.logprobs is not None
        answer.output = CompletionOutput(
            index=answer.choice,
            text="".join(answer.text),
            token_ids=tuple(answer.tokens),
            finish_reason=reason,
            stop_reason=answer.stop_reason,
            cumulative_logprob=sum(d.logprob or 0.0 for d in answer.drawn) if asked else None,
            logprobs=(
                tuple(token_logprobs(d, self._token_bytes) for d in answer.drawn) if asked else None
            ),
        )
        return True

    def _emit(self, answer: _Answer, text: str) -> None:
        if not text:
            return
        answer.text.append(text)
        if self._keep_deltas:
            self._ready.append(Delta(answer.prompt.key, answer.choice, text))

    def _close(self, answer: _Answer) -> None:
        prompt = answer.prompt
        done = self._whole.setdefault(answer.group, [])
        done.append(answer)
        if len(done) == prompt.params.n:
            del self._whole[answer.group]
            self._ready.append(_whole(prompt, sorted(done, key=lambda a: a.choice)))


def _whole(prompt: Prompt, choices: list[_Answer]) -> Answered | Refused:
    """What becomes of a request whose choices have all ended."""
    fault = next((c.fault for c in choices if c.fault is not None), None)
    if fault is not None:
        return Refused(prompt, fault)
    outputs = tuple(c.output for c in choices if c.output is not None)
    return Answered(prompt, RequestOutput(prompt.key, prompt.text, prompt.tokens, outputs))


def most_tokens(prompt: Prompt, context: int) -> int:
    """Tokens an answer may have: ``max_tokens``, or what the context leaves."""
    room = context - len(prompt.tokens)
    return room if prompt.params.max_tokens is None else min(prompt.params.max_tokens, room)


def as_request(prompt: Prompt, context: int) -> batching.Request:
    """``prompt`` as the batcher sees it. Raises LineError when it is empty, or the context has no
    room for an answer."""
    if not prompt.tokens:
        raise LineError("the prompt has no tokens", expected="at least one token", got=0)
    if len(prompt.tokens) >= context:
        raise LineError(
            "the prompt fills the context",
            code="context_length_exceeded",
            expected=f"at most {context - 1} tokens",
            got=len(prompt.tokens),
        )
    return batching.Request(
        prompt.key, prompt.tokens, most_tokens(prompt, context), prompt.params.n, prompt
    )
