"""The text on which routers are measured: short conversations written for this project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from demo.gguf_source import GgufSource

CONVERSATIONS = Path(__file__).with_name("calibration.jsonl")
WINDOW = 192


def calibration_tokens(tokenizer: Tokenizer, source: GgufSource) -> np.ndarray:
    """Token ids [B, WINDOW]: the conversations as the model sees them, one after the other.

    The system prompt in front of each is kept, as often as in real use: its rows are the same in
    every request, and a router that sent them to one place would be uneven for that reason alone.
    """
    template = ImmutableSandboxedEnvironment().from_string(source.field("tokenizer.chat_template"))
    ids: list[int] = []
    for line in CONVERSATIONS.read_text().splitlines():
        text = template.render(messages=json.loads(line)["messages"])
        ids += tokenizer.encode(text, add_special_tokens=False).ids
    windows = len(ids) // WINDOW
    return np.array(ids[: windows * WINDOW]).reshape(windows, WINDOW)
