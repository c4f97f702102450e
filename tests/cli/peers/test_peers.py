"""``bench peers``: the race, its bounds, and every way in which a peer may fail.

The peer of these tests is a script that prints what llama-batched-bench prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from headrace.cli.main import run
from headrace.cli.peers import bounds
from headrace.cli.peers.bounds import UNBOUNDED, Bound, bounded, drop_cached, read_cached
from headrace.cli.peers.command import label_of
from headrace.cli.peers.hf import Transformers, missing_packages
from headrace.cli.peers.llama import Llama
from headrace.cli.peers.ours import Ours, last_line, times_of
from headrace.cli.peers.process import Ended, run_process
from headrace.cli.peers.race import Race, Result, failure, median, with_times
from headrace.cli.peers.report import markdown, report
from headrace.cli.peers.shape import Shape, Times
from headrace.engine.record import Record, SweepAmounts
from headrace.errors import ModelError, UsageError

SHAPE = Shape(batch=8, prompt_len=64, gen_len=32, threads=2)

# What llama-batched-bench of llama.cpp 0.5.0-dev (0c1e570) printed, with --output-format jsonl.
RECORDED = """
{"n_kv_max": 8192, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, \
"n_gpu_layers": -1, "n_threads": 2, "n_threads_batch": 2, "pp": 64, "tg": 32, "pl": 1, \
"n_kv": 96, "t_pp": 0.255764, "speed_pp": 250.230667, "t_tg": 0.249203, "speed_tg": 128.409378, \
"t": 0.504967, "speed": 190.111450}
{"n_kv_max": 8192, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, \
"n_gpu_layers": -1, "n_threads": 2, "n_threads_batch": 2, "pp": 64, "tg": 32, "pl": 8, \
"n_kv": 768, "t_pp": 1.961691, "speed_pp": 260.999298, "t_tg": 1.352858, "speed_tg": 189.229034, \
"t": 3.314549, "speed": 231.705734}

"""

FAKE = """#!{python}
import json, sys
if "--version" in sys.argv:
    print("version: 1 (fake)", file=sys.stderr)
    sys.exit()
value = lambda flag: int(sys.argv[sys.argv.index(flag) + 1])
pl, pp, tg = value("-npl"), value("-npp"), value("-ntg")
assert value("-c") >= pl * (pp + tg) and value("-t") == value("-tb") == 1
{body}
print(json.dumps({{"pl": pl, "pp": pp, "tg": tg, "t_pp": 0.5, "t_tg": 2.0}}))
"""


@pytest.fixture
def peer(tmp_path):
    """Makes a fake llama-batched-bench that runs ``body`` first, and a file as its model."""
    (tmp_path / "model-f16.gguf").write_bytes(b"GGUF")

    def make(body: str = "") -> list[str]:
        program = tmp_path / "llama-batched-bench"
        program.write_text(FAKE.format(python=sys.executable, body=body))
        program.chmod(0o755)
        model = tmp_path / "model-f16.gguf"
        return ["--llama-batched-bench", str(program), "--gguf", str(model)]

    return make


class Scripted:
    """A contestant that is a line of Python, and says ``times`` of itself."""

    name, scratch = "scripted", None
    files: tuple[str, ...] = ()

    def __init__(self, code: str, times: Times | None = None) -> None:
        self.code, self.found = code, times

    def command(self, shape: Shape) -> list[str]:
        return [sys.executable, "-S", "-c", self.code]

    def times(self, output: str, shape: Shape) -> Times:
        if self.found is None:
            raise ValueError("it said nothing")
        return self.found


def raced(code: str, timeout: float = 20.0, times: Times | None = None) -> Result:
    (result,) = Race((Scripted(code, times),), (SHAPE,), 1, timeout).run(lambda text: None)
    return result


def test_the_whole_race_with_a_fake_peer(checkpoint, peer, tmp_path, capsys):
    file = tmp_path / "table.md"
    arguments = ["bench", "peers", str(checkpoint), *peer(), "--batch", "2", "--prompt-len", "4"]
    arguments += ["--gen-len", "3", "--rounds", "1", "--threads", "1"]
    assert run([*arguments, "--json", "-o", str(file)]) == 0
    made = json.loads(capsys.readouterr().out)
    ours, theirs = made["rows"]
    assert ours["error"] is None
    assert theirs["error"] is None
    assert (ours["name"], theirs["name"]) == ("headrace fp32", "llama.cpp model-f16")
    assert theirs["prefill_tokens_per_second"] == 2 * 4 / 0.5
    assert theirs["decode_tokens_per_second"] == 2 * 3 / 2.0
    assert theirs["requests_per_hour"] == 2 * 3600 / 2.5
    ratio = ours["requests_per_hour"] / theirs["requests_per_hour"]
    assert theirs["ours_over_theirs"]["requests_per_hour"] == pytest.approx(ratio)
    assert ours["peak_rss_bytes"] > 10_000_000
    assert made["versions"]["llama.cpp model-f16"] == "llama.cpp version: 1 (fake)"
    text = file.read_text()
    assert "| llama.cpp model-f16 | 2 | 16.0 | 3.00 |" in text
    assert "-npl 2" in text
    assert "not bounded" in text


def test_activations_are_passed_on_and_named():
    ours = Ours("folder", "bf16", activations="bf16")
    assert ours.name == "headrace bf16 x bf16"
    assert ours.command(SHAPE)[-2:] == ["auto", "bf16"]
    assert Ours("folder", "bf16").command(SHAPE)[-1] == "auto"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('cannot load', file=sys.stderr); sys.exit(3)", "exit code 3: cannot load"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out of memory"),
        ("import time; time.sleep(60)", "no result within 1 s"),
        ("sys.exit(0)", "no line of batch 2"),
    ],
)
def test_a_peer_that_fails_is_a_row_that_says_so(peer, body, said):
    program, gguf = peer(body)[1::2]
    shape = Shape(2, 4, 3, 1)
    (result,) = Race((Llama(program, gguf),), (shape,), 2, 1.0).run(lambda text: None)
    assert result.error is not None
    assert said in result.error
    made = report([replace(result, name="ours", error=None), result], (shape,), about())
    assert f"failed: {result.error}" in markdown(made)


def test_a_peer_that_is_missing_is_a_row_that_says_so(tmp_path):
    for llama in (Llama("/nowhere/llama", "x.gguf"), Llama(sys.executable, "/nowhere/x.gguf")):
        (result,) = Race((llama,), (SHAPE,), 1, 5.0).run(lambda text: None)
        assert "/nowhere/" in str(result.error)
    broken = tmp_path / "not-a-program"
    broken.write_bytes(b"\x00\x01")
    broken.chmod(0o755)
    (tmp_path / "x.gguf").write_bytes(b"")
    llama = Llama(str(broken), str(tmp_path / "x.gguf"))
    (result,) = Race((llama,), (SHAPE,), 1, 5.0).run(lambda text: None)
    assert "cannot be started" in str(result.error)
    assert llama.version() == "llama.cpp, version unknown"


def test_a_python_without_packages_is_a_row_that_says_so(tmp_path):
    assert missing_packages(sys.executable, ("json", "no_such_package")) == ["no_such_package"]
    assert missing_packages("/nowhere/python", ("json",)) == ["json"]
    with pytest.raises(UsageError, match="lacks torch, transformers, accelerate"):
        Transformers("/nowhere/python", "m", "bfloat16", 1).command(SHAPE)


def test_recorded_output_is_read():
    llama = Llama("llama-batched-bench", "m.gguf")
    times = llama.times(RECORDED, SHAPE)
    assert times == Times(512, 1.961691, 256, 1.352858, pytest.approx(3.314549))
    assert llama.times(RECORDED, replace(SHAPE, batch=1)).prefill_tokens == 64
    with pytest.raises(ValueError, match="no line of batch 3"):
        llama.times(RECORDED, replace(SHAPE, batch=3))
    for torn in (RECORDED.replace('"t_tg"', '"t_x"'), RECORDED.replace("}", "")):
        with pytest.raises(ValueError, match="no line"):
            llama.times(torn, SHAPE)


def test_arguments_are_passed_on():
    llama = Llama(sys.executable, __file__, "-fa on")
    assert llama.command(SHAPE)[-2:] == ["-fa", "on"]
    assert "768" in llama.command(SHAPE)


@pytest.mark.parametrize("output", ["", "text", "{}", "[]", '{"prefill_tokens": "x"}', "null"])
def test_a_worker_that_says_something_else_is_refused(output):
    with pytest.raises(ValueError, match="expected times"):
        last_line(output)


def test_failures_have_a_cause():
    assert failure(Ended(0, "", "", 0), UNBOUNDED, 5) is None
    assert failure(Ended(None, "", "", 0), UNBOUNDED, 5) == "no result within 5 s"
    said = failure(Ended(None, "", "loaded\n3 of 8 tokens\n", 0), UNBOUNDED, 5)
    assert said == "no result within 5 s: 3 of 8 tokens"
    assert failure(Ended(1, "", "a\nlast \n", 0), UNBOUNDED, 5) == "exit code 1: last"
    assert "signal 11" in str(failure(Ended(-11, "", "", 0), UNBOUNDED, 5))


def test_processes_are_watched_and_killed_with_their_children():
    code = "import subprocess, sys, time; b = bytearray(60 << 20); time.sleep(0.4)"
    ended = run_process([sys.executable, "-S", "-c", code], 20)
    assert ended.code == 0
    assert ended.peak_rss > 60 << 20
    spawn = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); "
        "print(p.pid, flush=True); p.wait()"
    )
    ended = run_process([sys.executable, "-S", "-c", spawn], 1)
    assert ended.code is None
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", ended.output.strip()], capture_output=True, text=True
    ).stdout.strip()
    assert state in ("",) or state.startswith("Z")


def test_memory_of_children_counts():
    inner = "b = bytearray(50 << 20); import time; time.sleep(1.2)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {inner!r}]); b = 1"
    outer_alone = run_process([sys.executable, "-S", "-c", "import subprocess"], 20).peak_rss
    assert run_process([sys.executable, "-S", "-c", code], 20).peak_rss > outer_alone + (40 << 20)


def test_a_scratch_folder_is_gone_afterwards_whatever_happened(tmp_path):
    code = "import tempfile, time; print(tempfile.mkdtemp(), flush=True); time.sleep(60)"
    ended = run_process([sys.executable, "-c", code], 1, str(tmp_path))
    assert ended.code is None
    assert ended.output.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_medians_of_rounds_and_failures_that_stay():
    times = Times(100, 1.0, 50, 1.0, 2.0, "v")
    runs = [
        with_times(Result("a", 8, "c", peak_rss_bytes=n), replace(times, decode_seconds=s), SHAPE)
        for n, s in ((5, 1.0), (9, 2.0), (7, 4.0))
    ]
    found = median(runs)
    assert found.decode_tokens_per_second == 25.0
    assert found.peak_rss_bytes == 9
    assert median([*runs, Result("a", 8, "c", error="no")]).error == "no"


def test_a_contestant_that_failed_is_not_run_again():
    heard: list[str] = []
    Race((Scripted("import sys; sys.exit(1)"),), (SHAPE,), 3, 20.0).run(heard.append)
    assert len(heard) == 1


def test_rounds_take_turns():
    heard: list[str] = []
    two = (Scripted("", Times(1, 1, 1, 1, 1)), Scripted("", Times(1, 1, 1, 1, 1)))
    two[1].name = "other"
    Race(two, (SHAPE,), 2, 20.0).run(heard.append)
    assert [text.split(": ")[1].split(",")[0] for text in heard] == ["scripted", "other"] * 2


def amounts(prefill: int, decode: int, seconds: float) -> SweepAmounts:
    return SweepAmounts(0, 0.0, prefill, decode, seconds)


def test_decode_is_timed_where_every_sequence_decodes():
    record = Record.__new__(Record)
    record.sweeps = [
        amounts(300, 0, 3.0),
        amounts(212, 3, 2.0),
        amounts(0, 8, 1.0),
        amounts(0, 8, 1.0),
        amounts(0, 5, 0.9),
    ]
    times = times_of(record, SHAPE, 8.0, "v")
    assert times == Times(512, 5.0, 16, 2.0, 8.0, "v")
    record.sweeps = record.sweeps[:2] + record.sweeps[4:]
    assert times_of(record, SHAPE, 8.0, "v").decode_tokens == 5


def test_labels_come_from_the_config(tmp_path):
    def label(config: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return label_of(str(tmp_path))

    assert label({"torch_dtype": "bfloat16"}) == "bf16"
    assert label({"dtype": "float16"}) == "fp16"
    assert label({"quantization_config": {"format": "int-quantized"}}) == "int-quantized"
    with pytest.raises(ModelError):
        label([])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--gguf", "x.gguf"],
        ["--llama-batched-bench", "x"],
        ["--accelerate"],
        ["--transformers", "--gen-len", "1"],
    ],
)
def test_races_without_a_peer_are_refused(checkpoint, arguments, capsys):
    assert run(["bench", "peers", str(checkpoint), *arguments]) == 2


def test_no_way_to_bound_memory_is_refused(monkeypatch):
    monkeypatch.setattr(bounds, "memory_cgroups", lambda: [])
    monkeypatch.setattr(bounds.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="control group"), bounded(1 << 30):
        pass


def test_a_group_of_version_2_is_made_and_removed(tmp_path, monkeypatch):
    """On a folder that looks like one: what is written where."""
    monkeypatch.setattr(bounds, "memory_cgroups", lambda: [([tmp_path], True)])
    monkeypatch.setattr(bounds, "_remove", lambda group: None)
    with bounded(123_000_000) as bound:
        assert bound.group is not None
        assert (bound.group / "memory.max").read_text() == "123000000"
        assert (bound.group / "memory.swap.max").read_text() == "0"
        (bound.group / "memory.peak").write_text("77\n")
        (bound.group / "memory.events").write_text("oom 1\noom_kill 2\n")
        assert bound.peak_bytes == 77
        assert bound.killed
        assert "v2" in bound.said


def test_files_leave_and_enter_the_page_cache(tmp_path):
    from headrace.memory.tiers import page_cache_bytes

    file = tmp_path / "sub" / "weights"
    file.parent.mkdir()
    file.write_bytes(os.urandom(1 << 20))
    read_cached([str(tmp_path)])
    assert page_cache_bytes(file) == 1 << 20
    drop_cached([str(tmp_path)])
    assert page_cache_bytes(file) < 1 << 20


def can_bound() -> bool:
    try:
        with bounded(1 << 30) as bound:
            return bound.group is not None
    except UsageError:
        return False


@pytest.mark.skipif(not can_bound(), reason="no control group may be made here")
def test_a_bound_holds_process_and_page_cache(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as out:
        for _ in range(96):
            out.write(os.urandom(1 << 20))
    drop_cached([str(file)])
    read = f"print(len(open({str(file)!r}, 'rb').read(0) or b'')); f = open({str(file)!r}, 'rb')\n"
    read += "while f.read(1 << 20): pass"
    with bounded(48 << 20) as bound:
        assert run_process(bound.command([sys.executable, "-S", "-c", read]), 30).code == 0
        assert bound.peak_bytes is not None
        assert bound.peak_bytes <= 48 << 20
        assert not bound.killed
    with bounded(48 << 20) as bound:
        ended = run_process(
            bound.command([sys.executable, "-S", "-c", "b = b'x' * (90 << 20)"]), 30
        )
        assert failure(ended, bound, 30) == "out of memory: killed by the kernel"
    assert bound.group is not None
    assert not bound.group.exists()


def about() -> dict[str, object]:
    return {
        "date": "2000-01-01",
        "machine": "m",
        "rounds": 1,
        "bound": Bound("not bounded").said,
        "versions": {},
    }
