"""Answers in the making: tokens and text of every sequence until its request is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace import batching
from headrace.batching.request import Request
from headrace.engine.outputs import CompletionOutput, RequestOutput
from headrace.engine.sampler import SampledToken, SampleRow
from headrace.specs.sampling import SamplingParams


@dataclass(frozen=True)
class Prompt:
    """One request as the engine takes it: tokens, how to draw, and the caller's ``payload``."""

    key: str
    tokens: tuple[int, ...]
    params: SamplingParams
    text: str | None = None
    payload: Any = None


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
    detokenizer: Any
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    drawn: list[SampledToken] = field(default_factory=list)
    output: CompletionOutput | None = None


class Answers:
    """Every open answer, by sequence id. Used under the engine's lock."""

    def __init__(
        self,
        eos_ids: frozenset[int],
        new_detokenizer: Callable[[Prompt], Any],
        context: int,
        keep_deltas: bool = False,
    ) -> None:
        self._eos = eos_ids
        self._new_detokenizer = new_detokenizer
        self._context = context
        self._keep_deltas = keep_deltas
        self._open: dict[int, _Answer] = {}
        self._whole: dict[str, list[CompletionOutput]] = {}
        self._ready: deque[Delta | RequestOutput] = deque()

    def open(self, sequences: Iterable[batching.request.Sequence], prompt: Prompt) -> None:
        """Start an answer for each sequence of ``prompt``."""
        for sequence in sequences:
            self._open[sequence.id] = _Answer(
                prompt, sequence.choice, self._new_detokenizer(prompt)
            )

    def rows(self, sequences: Sequence[int]) -> list[SampleRow]:
        """What the sampler must know of each row, in the order of ``sequences``."""
        return [self._row(self._open[s]) for s in sequences]

    def accept(
        self, sequences: Sequence[int], drawn: Sequence[SampledToken]
    ) -> tuple[dict[int, int], set[int]]:
        """Take one sweep's tokens; returns (sequence -> token, sequences that ended)."""
        tokens, ended = {}, set()
        for sequence, sample in zip(sequences, drawn, strict=True):
            tokens[sequence] = sample.token
            if self._push(self._open[sequence], sample):
                self._close(self._open.pop(sequence))
                ended.add(sequence)
        return tokens, ended

    def take(self) -> list[Delta | RequestOutput]:
        """Everything that became ready since the last call, in order."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

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
        params = answer.prompt.params
        answer.tokens.append(sample.token)
        if params.logprobs is not None:
            answer.drawn.append(sample)
        count = len(answer.tokens)
        at_end = sample.token in self._eos and not params.ignore_eos
        reason: str | None = None
        if (at_end or sample.token in params.stop_token_ids) and count > params.min_tokens:
            reason = "stop"
        else:
            self._emit(answer, answer.detokenizer.push(sample.token))
            if answer.detokenizer.stopped:
                reason = "stop"
            elif count >= self._most_tokens(answer.prompt):
                reason = "length"
        if reason is None:
            return False
        if not answer.detokenizer.stopped:
            self._emit(answer, answer.detokenizer.finish())
        answer.output = CompletionOutput(
            index=answer.choice,
            text="".join(answer.text),
            token_ids=tuple(answer.tokens),
            finish_reason=reason,
            logprobs=tuple(answer.drawn) if params.logprobs is not None else None,
        )
        return True

    def _emit(self, answer: _Answer, text: str) -> None:
        if not text:
            return
        answer.text.append(text)
        if self._keep_deltas:
            self._ready.append(Delta(answer.prompt.key, answer.choice, text))

    def _most_tokens(self, prompt: Prompt) -> int:
        return most_tokens(prompt, self._context)

    def _close(self, answer: _Answer) -> None:
        assert answer.output is not None
        prompt = answer.prompt
        done = self._whole.setdefault(prompt.key, [])
        done.append(answer.output)
        if len(done) == prompt.params.n:
            del self._whole[prompt.key]
            outputs = tuple(sorted(done, key=lambda o: o.index))
            self._ready.append(
                RequestOutput(
                    key=prompt.key,
                    prompt=prompt.text,
                    prompt_token_ids=prompt.tokens,
                    outputs=outputs,
                    payload=prompt.payload,
                )
            )


def most_tokens(prompt: Prompt, context: int) -> int:
    """Tokens an answer may have: ``max_tokens``, or what the context leaves."""
    room = context - len(prompt.tokens)
    return room if prompt.params.max_tokens is None else min(prompt.params.max_tokens, room)


def as_request(prompt: Prompt, context: int) -> Request:
    """``prompt`` as the batcher sees it."""
    return Request(
        prompt.key, prompt.tokens, most_tokens(prompt, context), prompt.params.n, prompt
    )
