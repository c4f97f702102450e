"""``headrace generate MODEL PROMPT``: one answer, printed as it is drawn."""

import sys
from typing import Annotated

import typer

from headrace.cli import options
from headrace.errors import UsageError


def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from stdin.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Apply the model's chat template, or none.")
    ] = True,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="0 is no limit.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="May be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos")] = False,
    revision: options.Revision = None,
    memory: options.Memory = None,
    schedule: options.Schedule = None,
    seed: options.Seed = 0,
    kv_cache_dtype: options.KvCacheDtype = "f16",
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    kernels: options.Kernels = "auto",
    activations: options.Activations = None,
    follow_routing: options.FollowRouting = False,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Answer one prompt on the terminal, token by token."""
    from headrace.errors import UsageError
    from headrace.specs.sampling import SamplingParams

    if system is not None and not chat:
        raise UsageError("--system is a part of the chat template", got="--raw as well")
    text = _prompt(prompt)
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        max_tokens=max_tokens,
    )
    from headrace.cli.engine import open_llm

    with open_llm(
        model,
        memory=memory,
        revision=revision,
        schedule=schedule,
        seed=seed,
        kv_dtype=kv_cache_dtype,
        max_seqs=1,
        max_model_len=max_model_len,
        threads=threads,
        kernels=kernels,
        activations=activations,
        follow_routing=follow_routing,
    ) as llm:
        pieces = llm.stream(_messages(text, system) if chat else text, params)
        _print(pieces, {"model": model, "prompt": text}, as_json=json)


def _print(pieces: object, answer: dict[str, object], *, as_json: bool) -> None:
    from headrace.cli.output import emit_json

    drawn = []
    for piece in pieces:  # type: ignore[attr-defined]
        drawn.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if as_json:
        emit_json({**answer, "text": "".join(drawn)})
    else:
        print()


def _prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise UsageError("no prompt", hint='headrace generate MODEL "Why is the sky blue?"')
    text = sys.stdin.read() if prompt in (None, "-") else str(prompt)
    if not text:
        raise UsageError("the prompt is empty")
    return text


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]
