"""Answers that never end: what the engine does around the arithmetic, as long as it is timed."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.batching.batch import Batch
from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.engine.answers import Answers, Prompt, as_request
from headrace.engine.detokenizer import Detokenizer
from headrace.engine.sampler import SampledToken, SampleRow
from headrace.engine.tokenizer import Tokenizer
from headrace.specs.sampling import SamplingParams

_NEVER = 1 << 30  # tokens that no rehearsal draws


class EndlessAnswers:
    """``count`` greedy answers, each of which decodes in every sweep: rows for the sampler, then
    text, bookkeeping and the next batch, by the engine's own code."""

    def __init__(self, count: int, tokenizer: Tokenizer) -> None:
        self._batcher = Batcher(
            Limits(max_rows=count, max_seqs=count, kv_blocks=count, kv_block=2 * _NEVER)
        )
        self._answers = Answers(
            tokenizer.eos_ids,
            lambda prompt: Detokenizer(tokenizer, prompt.params, prompt.tokens),
            tokenizer.token_bytes,
            _NEVER,
        )
        params = SamplingParams(temperature=0.0, max_tokens=_NEVER, ignore_eos=True)
        for number in range(count):
            prompt = Prompt(str(number), (0,), params)
            self._answers.open(self._batcher.add(as_request(prompt, _NEVER)), prompt)
        self._batch: Batch = self._batcher.next_batch()

    def rows(self) -> list[SampleRow]:
        """What the sampler must know of each."""
        return self._answers.rows(self._batch.sampled)

    def accept(self, drawn: Sequence[SampledToken]) -> None:
        """Take the tokens of one sweep, and choose the rows of the next one."""
        sound = [each if each.fault is None else SampledToken(0) for each in drawn]
        tokens, ended = self._answers.accept(self._batch.sampled, sound)
        self._batcher.commit(self._batch, tokens, ended)
        self._batch = self._batcher.next_batch()
