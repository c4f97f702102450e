"""Answers as OpenAI writes them: chat.completion, text_completion, and lines of a batch output.

A plain input line gets {"id", "key", "prompt"|"messages", "text", "finish_reason", "usage",
"error"}; with several choices also "choices", with log-probabilities "logprobs".
"""

from __future__ import annotations

from typing import Any

from headrace.engine.lines import BadLine, JobLine
from headrace.engine.outputs import CompletionOutput, Logprob, RequestOutput
from headrace.errors import HeadraceError, LineError, ParameterError

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write (as OpenAI)."""

BATCH_PREFIX = "batch_req_"
"""A batch line's id is this and its key."""


def answer_line(line: JobLine, output: RequestOutput, model: str, created: int) -> dict[str, Any]:
    """The output line of an answered request."""
    if line.plain:
        return _plain_answer(line, output)
    make = chat_body if line.chat else completion_body
    body = make(line.key, output, line.params.logprobs, model, created)
    return {
        "id": BATCH_PREFIX + line.key,
        "custom_id": line.custom_id,
        "response": {"status_code": 200, "request_id": f"req_{line.key}", "body": body},
        "error": None,
    }


def error_line(line: JobLine | BadLine, error: HeadraceError) -> dict[str, Any]:
    """The output line of a failed one; the error carries the line number of the input."""
    fault = {"code": error_code(error), "message": str(error), "line": line.number}
    if line.plain:
        empty = {"text": None, "finish_reason": None, "usage": None}
        return _plain_head(line) | empty | {"error": fault}
    head = {"id": BATCH_PREFIX + line.key, "custom_id": line.custom_id}
    return head | {"response": None, "error": fault}


def error_code(error: HeadraceError) -> str:
    """A stable code for programs."""
    if isinstance(error, LineError):
        return error.code
    return "invalid_parameter" if isinstance(error, ParameterError) else "server_error"


def key_of(content: dict[str, Any]) -> str | None:
    """The key an output line was written for; None when it is no output line of ours."""
    key, name = content.get("key"), content.get("id")
    if isinstance(key, str):
        return key
    if isinstance(name, str) and name.startswith(BATCH_PREFIX):
        return name.removeprefix(BATCH_PREFIX)
    return None


def chat_body(
    key: str, output: RequestOutput, logprobs: int | None, model: str, created: int
) -> dict[str, Any]:
    """A chat.completion object. ``logprobs`` as asked for: None, or alternatives per token."""
    choices = [
        {
            "index": o.index,
            "message": {"role": "assistant", "content": o.text, "refusal": None},
            "logprobs": None if logprobs is None else chat_logprobs(o, logprobs),
            "finish_reason": o.finish_reason,
        }
        for o in output.outputs
    ]
    return _head(f"chatcmpl-{key}", "chat.completion", model, created, choices, output)


def completion_body(
    key: str, output: RequestOutput, logprobs: int | None, model: str, created: int
) -> dict[str, Any]:
    """A text_completion object. ``logprobs`` as asked for: None, or alternatives per token."""
    choices = [
        {
            "index": o.index,
            "text": o.text,
            "logprobs": None if logprobs is None else completion_logprobs(o, logprobs),
            "finish_reason": o.finish_reason,
        }
        for o in output.outputs
    ]
    return _head(f"cmpl-{key}", "text_completion", model, created, choices, output)


def usage(output: RequestOutput) -> dict[str, int]:
    """Tokens of the prompt (counted once) and of all choices."""
    prompt, generated = len(output.prompt_token_ids), output.generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def chat_logprobs(output: CompletionOutput, alternatives: int) -> dict[str, Any]:
    """{"content": one entry per token, with its likeliest alternatives}."""
    content = []
    for token, entries in zip(output.token_ids, output.logprobs or (), strict=True):
        top = [_token_logprob(e) for e in _ranked(entries, alternatives)]
        content.append(_token_logprob(entries[token]) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(output: CompletionOutput, alternatives: int) -> dict[str, Any]:
    """Parallel lists, one entry per token; ``text_offset`` counts characters of the answer."""
    tokens, values, tops, offsets, at = [], [], [], [], 0
    for token, entries in zip(output.token_ids, output.logprobs or (), strict=True):
        drawn = entries[token]
        tokens.append(drawn.decoded_token)
        values.append(_finite(drawn.logprob))
        ranked = [*_ranked(entries, alternatives), drawn]
        tops.append({e.decoded_token: _finite(e.logprob) for e in reversed(ranked)})
        offsets.append(at)
        at += len(drawn.decoded_token)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops if alternatives else None,
        "text_offset": offsets,
    }


def _plain_answer(line: JobLine, output: RequestOutput) -> dict[str, Any]:
    first, asked = output.outputs[0], line.params.logprobs
    shape = chat_logprobs if line.chat else completion_logprobs
    record = _plain_head(line)
    record |= {"text": first.text, "finish_reason": first.finish_reason, "usage": usage(output)}
    if len(output.outputs) > 1:
        record["choices"] = [
            {"index": o.index, "text": o.text, "finish_reason": o.finish_reason}
            for o in output.outputs
        ]
    if asked is not None:
        record["logprobs"] = [shape(o, asked) for o in output.outputs]
    return record | {"error": None}


def _plain_head(line: JobLine | BadLine) -> dict[str, Any]:
    return {"id": line.source.get("id"), "key": line.key} | {
        name: line.source[name] for name in ("prompt", "messages") if name in line.source
    }


def _head(
    name: str,
    kind: str,
    model: str,
    created: int,
    choices: list[dict[str, Any]],
    output: RequestOutput,
) -> dict[str, Any]:
    return {
        "id": name,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage(output),
    }


def _ranked(entries: dict[int, Logprob], count: int) -> list[Logprob]:
    ranked = [e for e in entries.values() if e.rank is not None and e.rank <= count]
    return sorted(ranked, key=lambda e: e.rank or 0)


def _token_logprob(entry: Logprob) -> dict[str, Any]:
    return {
        "token": entry.decoded_token,
        "bytes": list(entry.token_bytes),
        "logprob": _finite(entry.logprob),
    }


def _finite(value: float) -> float:
    return max(value, LEAST_LOGPROB)
