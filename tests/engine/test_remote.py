"""A repo id is indexed over HTTP: headers by range, no weights, the token for the hub alone."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from headrace.cli.main import run
from headrace.cli.model_source import find_model
from headrace.engine.hub import _cached_snapshot, hub_checkpoint
from headrace.engine.remote import FIRST_BYTES
from headrace.errors import CheckpointError, ModelError
from headrace.memory.checkpoint import INDEX, Checkpoint

COMMIT = "c0ffee" * 6


class Hub:
    """A hub on 127.0.0.1 that serves one folder as ``org/model`` and counts what it sends."""

    def __init__(self, folder):
        self.folder = folder
        self.sent = 0
        self.asked: list[tuple[str, str, str | None]] = []  # (path, range, authorization)
        self.ranges = True
        self.refusal: tuple[int, str] | None = None
        self.storage: str | None = None  # where shards are redirected to

    @property
    def handler(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, to):
        header = to.headers.get
        self.asked.append((to.path, header("Range") or "", header("Authorization")))
        match = re.fullmatch(r"/(org/model)/resolve/([^/]+)/([^/]+)", to.path)
        stored = re.fullmatch(r"/stored/([^/]+)", to.path)
        if self.refusal is not None:
            return self.refuse(to, *self.refusal)
        if match is None and stored is None:
            return self.refuse(to, 401, "RepoNotFound")
        name = unquote((match or stored).groups()[-1])
        if match and match[2] not in ("main", COMMIT):
            return self.refuse(to, 404, "RevisionNotFound")
        file = self.folder / name
        if not file.is_file():
            return self.refuse(to, 404, "EntryNotFound")
        if match and self.storage and name.endswith(".safetensors"):
            to.send_response(302)
            to.send_header("Location", f"{self.storage}/stored/{name}")
            to.send_header("X-Repo-Commit", COMMIT)
            to.end_headers()
            return None
        data = file.read_bytes()
        start, end = 0, len(data)
        if self.ranges:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", header("Range")).groups()
            start, end = int(first), min(int(last) + 1, len(data))
        to.send_response(206 if self.ranges else 200)
        to.send_header("Content-Length", str(end - start))
        to.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        to.send_header("X-Repo-Commit", COMMIT)
        to.end_headers()
        self.sent += end - start
        to.wfile.write(data[start:end])
        return None

    def refuse(self, to, status, code):
        to.send_response(status)
        to.send_header("X-Error-Code", code)
        to.send_header("Content-Length", "0")
        to.end_headers()


@contextmanager
def served(hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of several shards, some 20 times the size of its headers."""
    path = tmp_path_factory.mktemp("remote") / "model"
    size = ("--layers", "4", "--hidden", "64", "--heads", "4", "--kv-heads", "2", "--width", "256")
    arguments = [*size, "--vocab", "300", "--dtype", "f32", "--shard-size", "2MB"]
    assert run(["bench", "make-checkpoint", str(path), *arguments]) == 0
    return path


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    found = Hub(folder)
    with served(found) as url:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield found


def test_the_index_is_that_of_the_folder(hub, folder):
    checkpoint, here = hub_checkpoint("org/model")
    local = Checkpoint.open(folder)
    assert not here
    assert checkpoint.tensors == local.tensors
    assert checkpoint.config == local.config
    assert checkpoint.generation_config == local.generation_config
    assert [h.digest for h in checkpoint.headers] == [h.digest for h in local.headers]
    assert len(local.files) > 3


def test_no_weights_are_sent(hub, folder):
    hub_checkpoint("org/model")
    stored = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    headers = sum(
        max(FIRST_BYTES, header.file_bytes - header.data_bytes)
        for header in Checkpoint.open(folder).headers
    )
    small = sum(f.stat().st_size for f in folder.glob("*.json"))
    assert hub.sent <= headers + small < stored / 10


def test_a_long_header_is_fetched_to_its_end(hub, folder, tmp_path):
    text = json.dumps({"__metadata__": {"x": "y" * (2 * FIRST_BYTES)}}).encode()
    for name in ("config.json",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    hub.folder = tmp_path
    assert hub_checkpoint("org/model")[0].tensors == {}
    asked = [r for path, r, _ in hub.asked if path.endswith("model.safetensors")]
    assert asked == [f"bytes=0-{FIRST_BYTES - 1}", f"bytes={FIRST_BYTES}-{len(text) + 7}"]


def test_every_file_comes_from_one_commit(hub):
    hub_checkpoint("org/model")
    revisions = [path.split("/resolve/")[1].split("/")[0] for path, _, _ in hub.asked]
    assert revisions[0] == "main"
    assert set(revisions[1:]) == {COMMIT}


def test_the_token_goes_to_the_hub_and_not_to_where_files_are_stored(hub, folder):
    storage = Hub(folder)
    with served(storage) as url:
        hub.storage = url
        hub_checkpoint("org/model")
    assert {token for _, _, token in hub.asked} == {"Bearer hf_secret"}
    assert storage.asked
    assert {token for _, _, token in storage.asked} == {None}
    assert all(r.startswith("bytes=") for _, r, _ in storage.asked)


def test_plan_and_inspect_take_a_repo_id(hub, folder, capsys):
    assert run(["inspect", "org/model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(folder), "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    assert found.pop("source") == "hub, headers only"
    assert {**found, "name": local["name"], "source": local["source"]} == local
    job = ("--requests", "2", "--prompt-len", "4", "--gen-len", "2", "--hardware", "cpu-2core")
    assert run(["plan", "org/model", *job, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert run(["plan", str(folder), *job, "--json"]) == 0
    assert planned["policy"] == json.loads(capsys.readouterr().out)["policy"]
    assert run(["inspect", "org/model", "--check-weights"]) == 2


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", "gated"),
        (401, "RepoNotFound", "no model org/model"),
        (404, "RevisionNotFound", "no such revision"),
        (404, "EntryNotFound", "has no config.json"),
        (500, "", "HTTP 500"),
        (429, "", "HTTP 429"),
    ],
)
def test_a_refusal_says_what_to_try(hub, status, code, said):
    hub.refusal = (status, code)
    with pytest.raises(ModelError, match=said):
        hub_checkpoint("org/model")


def test_a_missing_revision_is_named(hub):
    with pytest.raises(ModelError, match="no such revision"):
        find_model("org/model", "v9")


def test_a_hub_that_sends_whole_files_is_not_read_to_their_end(hub, folder):
    hub.ranges = False
    checkpoint, _ = hub_checkpoint("org/model")
    assert checkpoint.tensors == Checkpoint.open(folder).tensors


def test_files_are_read_with_suspicion(hub, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    hub.folder = tmp_path
    (tmp_path / "config.json").write_text('{"a": NaN}')
    with pytest.raises(CheckpointError):
        hub_checkpoint("org/model")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is truncated"):
        hub_checkpoint("org/model")


def test_offline_only_the_cache_counts(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        hub_checkpoint("org/model")
    place = tmp_path / "cache" / "models--org--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(place / "blobs" / file.name)
        (place / "blobs").mkdir(exist_ok=True)
        (place / "blobs" / file.name).write_bytes(file.read_bytes())
    source = find_model("org/model")
    assert (source.kind, source.folder) == ("Hugging Face cache", snapshot)
    assert not hub.asked


def test_a_download_that_was_interrupted_is_not_in_the_cache(tmp_path):
    place = tmp_path / "models--org--model"
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / INDEX).write_text(json.dumps(index))
    (snapshot / "one.safetensors").touch()
    assert _cached_snapshot(tmp_path, "org/model", COMMIT) is None
    (snapshot / "two.safetensors").touch()
    assert _cached_snapshot(tmp_path, "org/model", COMMIT) == snapshot
    (snapshot / INDEX).write_text("[")  # whoever opens it says so
    assert _cached_snapshot(tmp_path, "org/model", COMMIT) == snapshot


def test_no_network_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ModelError, match="does not answer"):
        hub_checkpoint("org/model")
