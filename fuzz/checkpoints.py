"""300 damaged checkpoints from one seed, and what must come of each.

Each is a small valid checkpoint with one fault. Most must be refused. A few faults change nothing
that a run depends on, and must load and answer the same; changed weights make a sound checkpoint
of another model, which nothing but a hash from elsewhere could tell.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from fuzz.targets import CONFIG, safetensors_file, small_tensors
from headrace.memory.checkpoint import INDEX, SINGLE

Damage = Callable[[Path, Random], None]
Outcome = Literal["refused", "the same", "other weights"]


@dataclass(frozen=True)
class Case:
    """One damaged checkpoint: ``damage`` changes a valid folder, and ``outcome`` must follow."""

    name: str
    shards: bool
    damage: Damage
    outcome: Outcome = "refused"


def cases(count: int = 300, seed: int = 4) -> Iterator[tuple[Case, Random]]:
    """``count`` cases in a fixed order, each with its own source of chance."""
    kinds = [*KINDS]
    for number in range(count):
        yield kinds[number % len(kinds)], Random(f"{seed}-{number}")


def build(folder: Path, case: Case, random: Random) -> Path:
    """Write the valid checkpoint to ``folder``, then damage it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = list(small_tensors().items())
    if case.shards:
        weight_map = {}
        for shard in (0, 1):
            file = f"model-{shard + 1:05}-of-00002.safetensors"
            share = dict(shapes[shard::2])
            (folder / file).write_bytes(safetensors_file(share))
            weight_map |= dict.fromkeys(share, file)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        (folder / SINGLE).write_bytes(safetensors_file(dict(shapes)))
    shutil.copyfile(tokenizer_json(), folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    case.damage(folder, random)
    return folder


def tokenizer_json() -> Path:
    """A tokenizer of sixteen letters, as the tokenizers library writes it."""
    return Path(__file__).with_name("tokenizer.json")


# -- faults of a safetensors file -----------------------------------------------------------


def truncated(folder: Path, random: Random) -> None:
    """Any prefix of a file."""
    file = _weights(folder, random)
    os.truncate(file, random.randrange(file.stat().st_size))


def longer(folder: Path, random: Random) -> None:
    """Bytes after the last tensor."""
    with _weights(folder, random).open("ab") as file:
        file.write(bytes(random.randrange(1, 100)))


def length_lies(folder: Path, random: Random) -> None:
    """Another length of the header, up to 2^64 - 1."""
    file = _weights(folder, random)
    data = file.read_bytes()
    true = int.from_bytes(data[:8], "little")
    lie = random.choice([0, 1, true - 1, true + 1, len(data), 1 << 31, 1 << 40, (1 << 64) - 1])
    file.write_bytes(lie.to_bytes(8, "little") + data[8:])


def flipped(folder: Path, random: Random) -> None:
    """A bit of a tensor's entry: its dtype, a digit of its shape, or an offset."""

    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice(sorted(header))]
        part = random.choice(["dtype", "shape", "data_offsets"])
        if part == "dtype":
            at = random.randrange(4)
            entry[part] = _replaced(entry[part], at, chr(ord(entry[part][at]) ^ 1))
        else:
            entry[part][-1] ^= 1 << random.randrange(63)

    _edit_header(folder, random, change)


def swapped_bytes(folder: Path, random: Random) -> None:
    """A byte of the header that JSON cannot have there."""
    file = _weights(folder, random)
    data = bytearray(file.read_bytes())
    data[8 + random.randrange(20)] = random.choice([0, 1, 0x80, 0xFF])
    file.write_bytes(data)


def overlapping(folder: Path, random: Random) -> None:
    """Two tensors at one place."""

    def change(header: dict[str, Any]) -> None:
        first, second = random.sample(sorted(header), 2)
        header[first]["data_offsets"] = header[second]["data_offsets"]
        header[first]["shape"] = header[second]["shape"]

    _edit_header(folder, random, change)


def huge_shape(folder: Path, random: Random) -> None:
    """A shape whose product overflows, or needs more than there is."""

    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice(sorted(header))]
        sizes = random.choice([[1 << 62, 1 << 62], [1 << 40], [10**30], [-1, 4], [2**31] * 8])
        entry["shape"] = sizes

    _edit_header(folder, random, change)


def other_shape(folder: Path, random: Random) -> None:
    """As many elements, arranged otherwise."""

    def change(header: dict[str, Any]) -> None:
        name = random.choice([n for n in sorted(header) if len(header[n]["shape"]) == 2])
        header[name]["shape"] = [1, header[name]["shape"][0] * header[name]["shape"][1]]

    _edit_header(folder, random, change)


def other_dtype(folder: Path, random: Random) -> None:
    """A format of equal size that does not run."""

    def change(header: dict[str, Any]) -> None:
        header[random.choice(sorted(header))]["dtype"] = random.choice(["I16", "U16"])

    _edit_header(folder, random, change)


def wrong_types(folder: Path, random: Random) -> None:
    """Something else where a number, a text or a list belongs."""

    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice(sorted(header))]
        odd = random.choice([None, True, 1.5, "8", {}, [], [[8]], [1.0], ["8"], "BF17", 10**400])
        entry[random.choice(["dtype", "shape", "data_offsets"])] = odd

    _edit_header(folder, random, change)


def renamed_tensor(folder: Path, random: Random) -> None:
    """A tensor under a name that nothing asks for."""

    def change(header: dict[str, Any]) -> None:
        name = random.choice(sorted(header))
        header[name + random.choice(["x", ".weight", "\0", "\ud800"])] = header.pop(name)

    _edit_header(folder, random, change)


def not_safetensors(folder: Path, random: Random) -> None:
    """A pickle, an archive, noise, or nothing under the name of a weights file."""
    noise = random.randbytes(200)
    content = random.choice([b"\x80\x02csystem\nq\0.", b"PK\3\4" + noise, noise, b"", bytes(64)])
    _weights(folder, random).write_bytes(content)


def nested_header(folder: Path, random: Random) -> None:
    """Brackets as deep as the stack."""
    text = random.choice([b"[", b'{"a":']) * random.choice([10**3, 10**5])
    _weights(folder, random).write_bytes(len(text).to_bytes(8, "little") + text)


def data_changed(folder: Path, random: Random) -> None:
    """Other weights, all of them finite: another model, but a sound file."""
    file = _weights(folder, random)
    data = bytearray(file.read_bytes())
    for _ in range(10):
        data[-1 - random.randrange(100)] = random.randrange(0x40)
    file.write_bytes(data)


def spaced_header(folder: Path, random: Random) -> None:
    """Spaces after the header's text, as the format allows."""
    file = _weights(folder, random)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end] + b" " * random.randrange(1, 9)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


# -- faults of the index and of the folder ----------------------------------------------------


def index_lies(folder: Path, random: Random) -> None:
    """A tensor that is elsewhere, nowhere, or in a file that no folder has."""
    names = ["../x.safetensors", "/etc/passwd", "", ".", "a\0.safetensors", "x" * 300, "w.bin"]
    other: list[Any] = [*names, "missing.safetensors", None, 7, ["a"], {}, True, "\ud800"]

    def change(index: dict[str, Any]) -> None:
        weight_map = index["weight_map"]
        name = random.choice(sorted(weight_map))
        if random.random() < 0.4:
            files = sorted(set(weight_map.values()))
            weight_map[name] = files[1 - files.index(weight_map[name])]
        else:
            weight_map[name] = random.choice(other)

    _edit_json(folder / INDEX, change)


def index_broken(folder: Path, random: Random) -> None:
    """No index at all."""
    texts = ["", "[]", "null", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\0", "NaN"]
    deep = '{"weight_map":' + "[" * 10**5
    twice = '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'
    (folder / INDEX).write_text(random.choice([*texts, deep, twice]))


def index_short(folder: Path, random: Random) -> None:
    """A tensor that the index does not name."""

    def change(index: dict[str, Any]) -> None:
        del index["weight_map"][random.choice(sorted(index["weight_map"]))]

    _edit_json(folder / INDEX, change)


def shard_missing(folder: Path, random: Random) -> None:
    """A file that was not downloaded."""
    _weights(folder, random).unlink()


def shard_is_odd(folder: Path, random: Random) -> None:
    """A folder, a pipe, a device, or a link out of the folder, where a shard should be."""
    file = _weights(folder, random)
    file.unlink()
    match random.randrange(5):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to("/dev/zero")
        case 3:
            file.symlink_to("/etc/passwd")
        case 4:
            file.symlink_to(file.name)


def only_pickles(folder: Path, random: Random) -> None:
    """Weights as PyTorch pickles them."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / random.choice(["pytorch_model.bin", "model.pt", "consolidated.00.pth"])).touch()


def index_metadata(folder: Path, random: Random) -> None:
    """Odd metadata, which nobody reads."""
    _edit_json(folder / INDEX, lambda index: index.update(metadata=random.choice([7, [], "x"])))


def stray_files(folder: Path, random: Random) -> None:
    """Files beside the checkpoint: pickles and code that are never opened."""
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02csystem\nq\0.")
    (folder / "modeling.py").write_text("raise SystemExit")


# -- faults of config.json ---------------------------------------------------------------------


def config_broken(folder: Path, random: Random) -> None:
    """No config at all."""
    texts = ["", "[]", "null", "{", "{}", "\0", '{"model_type": "mixtral", "model_type": "olmoe"}']
    deep = '{"a":' * 10**5
    wide = json.dumps({"model_type": "mixtral", "deep": json.loads("[" * 40 + "]" * 40)})
    (folder / "config.json").write_text(random.choice([*texts, deep, wide, "9" * 5000]))


def config_missing(folder: Path, random: Random) -> None:
    """A folder without its config."""
    (folder / "config.json").unlink()


def huge_config(folder: Path, random: Random) -> None:
    """Sizes that no machine has."""
    name = random.choice(_SIZES)
    value = random.choice([0, -1, 2**31, 2**63, 10**30, 10**400, 1.5, "8", True, [8], {}, 1e300])
    _set(folder, name, value)


def other_size(folder: Path, random: Random) -> None:
    """Sizes that are possible, but not of these weights."""
    factor = random.choice([2, 3, 7])
    name = random.choice(["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
                          "num_local_experts"])  # fmt: skip
    _set(folder, name, CONFIG[name] * factor)


def unsupported(folder: Path, random: Random) -> None:
    """Features that change results and do not run."""
    name, value = random.choice(
        [
            ("model_type", "gpt2"),
            ("model_type", 7),
            ("architectures", ["MixtralForSequenceClassification"]),
            ("hidden_act", "gelu"),
            ("quantization_config", {"quant_method": "gptq"}),
            ("quantization_config", []),
            ("torch_dtype", "float8"),
            ("rope_scaling", {"rope_type": "novel", "factor": 2.0}),
            ("rope_scaling", {"rope_type": "linear", "factor": 0}),
            ("rope_scaling", {"rope_type": "yarn", "factor": float("nan")}),
            ("rope_scaling", "linear"),
            ("partial_rotary_factor", 0.5),
            ("layer_types", ["full_attention", "sliding_attention"]),
            ("layer_types", {}),
            ("rms_norm_eps", float("inf")),
            ("rms_norm_eps", "small"),
            ("rope_theta", -1),
            ("num_attention_heads", 3),
            ("num_experts_per_tok", 3),
            ("tie_word_embeddings", "yes"),
            ("sliding_window", -4),
        ]
    )
    _set(folder, name, value)


def generation_broken(folder: Path, random: Random) -> None:
    """A generation_config.json that is none."""
    text = random.choice(["", "[]", "{", "3", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a":' * 10**5])
    (folder / "generation_config.json").write_text(text)


def unread_keys(folder: Path, random: Random) -> None:
    """Keys that nobody reads, code that is never run (auto_map) among them."""
    odd = {"auto_map": {"AutoModel": "modeling.Mine"}, "novel": [7], "use_cache": False}
    name = random.choice(sorted(odd))
    _set(folder, name, odd[name])


# -- faults of the tokenizer ---------------------------------------------------------------------


def tokenizer_broken(folder: Path, random: Random) -> None:
    """A tokenizer.json that is none."""
    texts = ["", "[]", "{}", "null", "{", '{"a":' * 10**5, '{"model": {"type": "BPE"}}', "9" * 5000]
    (folder / "tokenizer.json").write_text(random.choice(texts))


def tokenizer_lies(folder: Path, random: Random) -> None:
    """A tokenizer.json whose parts contradict what they are."""
    part = random.choice(["model", "added_tokens", "version", "normalizer", "decoder"])
    odd = random.choice([7, "x", {"type": "Novel"}, [[]], {"type": 7}])

    _edit_json(folder / "tokenizer.json", lambda document: document.update({part: odd}))


def tokenizer_grows(folder: Path, random: Random) -> None:
    """Rules that double each letter many times over."""
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    rules = {"type": "Sequence", "normalizers": [rule] * random.randrange(20, 200)}

    _edit_json(folder / "tokenizer.json", lambda document: document.update(normalizer=rules))


def tokenizer_missing(folder: Path, random: Random) -> None:
    """No tokenizer."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def ends_broken(folder: Path, random: Random) -> None:
    """Ends of a text that are no ids."""
    _set(folder, "eos_token_id", random.choice(["x", -1, [True], {}, 1.5, [[]], ["a"]]))


def tokenizer_pads(folder: Path, random: Random) -> None:
    """Padding and truncation, to any length: Headrace does neither."""
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}  # fmt: skip
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}

    def change(document: dict[str, Any]) -> None:
        document.update(random.choice([{"padding": padding}, {"truncation": cut}]))

    _edit_json(folder / "tokenizer.json", change)


KINDS: tuple[Case, ...] = (
    *(Case(d.__name__, shards, d) for shards in (False, True) for d in (
        truncated, longer, length_lies, flipped, swapped_bytes, overlapping, huge_shape,
        other_shape, other_dtype, wrong_types, renamed_tensor, not_safetensors, nested_header,
        shard_missing, shard_is_odd,
    )),
    *(Case(d.__name__, True, d) for d in (index_lies, index_lies, index_broken, index_short)),
    *(Case(d.__name__, False, d) for d in (
        only_pickles, config_broken, config_missing, huge_config, huge_config, other_size,
        unsupported, unsupported, unsupported, generation_broken,
        tokenizer_broken, tokenizer_lies, tokenizer_grows, tokenizer_missing, ends_broken,
    )),
    Case("data_changed", False, data_changed, "other weights"),
    Case("index_metadata", True, index_metadata, "the same"),
    *(Case(d.__name__, False, d, "the same") for d in (
        spaced_header, stray_files, unread_keys, tokenizer_pads,
    )),
)  # fmt: skip
"""Every kind of damage, in the order in which ``cases`` takes them in turn."""

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "num_local_experts", "num_experts_per_tok", "vocab_size",
          "max_position_embeddings")  # fmt: skip


def _weights(folder: Path, random: Random) -> Path:
    return random.choice(sorted(folder.glob("*.safetensors")))


def _edit_header(folder: Path, random: Random, change: Callable[[dict[str, Any]], None]) -> None:
    file = _weights(folder, random)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def _edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def _set(folder: Path, name: str, value: Any) -> None:
    _edit_json(folder / "config.json", lambda config: config.update({name: value}))


def _replaced(text: str, at: int, character: str) -> str:
    at %= len(text)
    return text[:at] + character + text[at + 1 :]
