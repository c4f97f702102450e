"""The bundled prompts are what the demo promises: many, varied, of both kinds, deterministic."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "demo"
LINES = [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text().splitlines()]


def test_there_are_enough_and_they_differ():
    texts = [line.get("body", line)["messages"][-1]["content"] for line in LINES]
    assert len(LINES) >= 128
    assert len(set(texts)) == len(texts)
    words = sorted(len(text.split()) for text in texts)
    assert words[len(words) // 2] < 30
    assert words[-10] >= 80


def test_both_kinds_of_line_are_there_and_well_formed():
    openai = [line for line in LINES if "custom_id" in line]
    plain = [line for line in LINES if "custom_id" not in line]
    assert len(openai) > len(plain) > 10
    assert len({line["custom_id"] for line in openai}) == len(openai)
    assert {(line["method"], line["url"]) for line in openai} == {("POST", "/v1/chat/completions")}


def test_answers_are_greedy_and_bounded():
    bodies = [line.get("body", line) for line in LINES]
    assert {body["temperature"] for body in bodies} == {0}
    assert 16 <= min(b["max_tokens"] for b in bodies) < max(b["max_tokens"] for b in bodies) <= 96
