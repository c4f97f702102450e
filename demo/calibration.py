"""The texts on which routers are measured, made for this project.

Conversations and prose written by hand, and the demo's prompts with the dense model's own answers:
a router that is even on one kind of text only is not even.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from demo.gguf_source import GgufSource

FOLDER = Path(__file__).parent
WINDOW = 256


def calibration_tokens(tokenizer: Tokenizer, source: GgufSource) -> np.ndarray:
    """Token ids [B, WINDOW].

    The system prompt in front of each conversation is kept, as often as in real use: its rows are
    the same in every request, and would make a router uneven on their own.
    """
    template = ImmutableSandboxedEnvironment().from_string(source.field("tokenizer.chat_template"))
    talks = _messages(FOLDER / "calibration.jsonl")
    answered = _messages(FOLDER / "calibration_answers.jsonl")
    kinds = (
        "".join(template.render(messages=m) for m in talks),
        "".join(template.render(messages=m) for m in answered[::3]),
        "\n\n".join(m[-1]["content"] for m in talks + answered[1::3]),
        (FOLDER / "calibration.txt").read_text(),
    )
    return np.concatenate([_windows(tokenizer, text) for text in kinds])


def _windows(tokenizer: Tokenizer, text: str) -> np.ndarray:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)


def _messages(file: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in file.read_text().splitlines()]
