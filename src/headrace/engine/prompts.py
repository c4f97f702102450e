"""Prompts as the engine takes them: each with a key, and what they amount to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from headrace.engine.answers import Prompt, as_request, most_tokens
from headrace.engine.sampler import check_params
from headrace.errors import ParameterError, UsageError
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload


def make_prompts(
    encoded: Sequence[tuple[int, ...]],
    texts: Sequence[str | None],
    params: SamplingParams | Sequence[SamplingParams] | None,
) -> list[Prompt]:
    """A prompt for each of ``encoded``; ``params`` is one for all, or one each.

    A key is made of the tokens and of how many equal prompts came before, so that what a
    prompt draws does not depend on the others. Raises UsageError when ``params`` are not as many.
    """
    if params is None or isinstance(params, SamplingParams):
        params = [params or SamplingParams()] * len(encoded)
    each = list(params)
    if len(each) != len(encoded):
        raise UsageError("sampling parameters", expected=f"one, or {len(encoded)}", got=len(each))
    seen: Counter[tuple[int, ...]] = Counter()
    prompts = []
    for tokens, text, own in zip(encoded, texts, each, strict=True):
        prompts.append(Prompt(f"{_digest(tokens)}-{seen[tokens]}", tokens, own, text))
        seen[tokens] += 1
    return prompts


def check_prompt(prompt: Prompt, vocab: int, eos_ids: frozenset[int], context: int) -> None:
    """Refuse what a model of ``vocab`` tokens and this context cannot run, before any work.

    Raises ParameterError (parameters, token ids), LineError (empty, or no room for an answer).
    """
    check_params(prompt.params, vocab, eos_ids)
    known = range(vocab)
    for token in (min(prompt.tokens, default=0), max(prompt.tokens, default=0)):
        if token not in known:
            raise ParameterError("prompt token id", expected=f"0 to {vocab - 1}", got=token)
    as_request(prompt, context)


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


def _digest(tokens: tuple[int, ...]) -> str:
    text = ",".join(map(str, tokens))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
