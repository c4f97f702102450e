"""300 damaged checkpoints: each is refused by a class of the tree, or answers the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.checkpoints import KINDS, build, cases
from headrace.engine.llm import LLM
from headrace.engine.loaded import Loaded
from headrace.errors import ModelError
from headrace.specs.registry import known_hardware
from headrace.specs.sampling import SamplingParams

HARMLESS = [case for case in KINDS if case.outcome == "the same"]
DRAWN = SamplingParams(seed=3, max_tokens=12, ignore_eos=True, logprobs=2)


def load(folder: Path) -> tuple[object, dict[str, bytes], list[int]]:
    """What a run depends on: the model, the bytes of its tensors, how text is split."""
    loaded = Loaded.open(folder)
    try:
        files = [f.read_bytes() for f in loaded.checkpoint.files]
        tensors = loaded.checkpoint.tensors
        data = {n: files[t.file][t.offset : t.offset + t.nbytes] for n, t in tensors.items()}
        return loaded.model, data, loaded.tokenizer.encode("abcabc")
    finally:
        loaded.close()


def test_damaged_checkpoints_are_refused_and_harmless_ones_load_the_same(tmp_path: Path) -> None:
    sound = None
    outcomes = {"refused": 0, "the same": 0, "other weights": 0}
    for number, (case, random) in enumerate(cases()):
        folder = build(tmp_path / str(number), case, random)
        outcomes[case.outcome] += 1
        if case.outcome == "refused":
            with pytest.raises(ModelError) as refused:
                load(folder)
            assert refused.value.message, case.name
            continue
        model, data, tokens = load(folder)
        sound = sound or load(build(tmp_path / "sound", HARMLESS[0], random))
        assert (model, tokens) == (sound[0], sound[2]), case.name
        assert (data == sound[1]) == (case.outcome == "the same"), case.name
    assert outcomes == {"refused": 270, "the same": 25, "other weights": 5}


def test_harmless_damage_changes_no_answer(tmp_path: Path) -> None:
    answers = set()
    for case in HARMLESS:
        number, random = next((i, r) for i, (c, r) in enumerate(cases()) if c == case)
        folder = build(tmp_path / str(number), case, random)
        with LLM(folder, memory=1 << 28, hardware=known_hardware("cpu-2core").hardware) as llm:
            (output,) = llm.generate("abc", DRAWN)
        answers.add((output.outputs[0].token_ids, str(output.outputs[0].logprobs)))
    ((tokens, _),) = answers
    assert len(set(tokens)) > 1, "an answer of one token repeated would tell nothing apart"
