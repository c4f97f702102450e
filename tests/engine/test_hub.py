"""A model's name becomes a folder, or an error that says what to do."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from headrace.engine.hub import FILES, local_folder
from headrace.errors import ModelError, UsageError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that knows one model of 10 bytes, and notes what it was asked for."""
    asked = []
    files = [SimpleNamespace(rfilename="model.safetensors", size=10)]

    class Api:
        def model_info(self, repo, revision=None, files_metadata=False):
            return SimpleNamespace(siblings=files)

    def download(repo, revision=None, allow_patterns=None):
        asked.append((repo, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return SimpleNamespace(asked=asked, files=files, monkeypatch=monkeypatch)


def test_a_folder_is_itself(tmp_path):
    assert local_folder(tmp_path) == tmp_path


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="not a checkpoint folder"):
        local_folder(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["./nowhere/at/all", "nowhere", "a/b/c", "../x y"])
def test_what_is_neither_folder_nor_repo_id_is_refused(name):
    with pytest.raises(ModelError, match="no such checkpoint folder"):
        local_folder(name)


def test_a_repo_id_is_fetched_without_pickles(hub, tmp_path):
    assert local_folder("org/model", "main") == tmp_path
    assert hub.asked == [("org/model", "main", FILES)]
    assert not any("bin" in pattern or ".py" in pattern for pattern in FILES)


def test_a_model_larger_than_the_disk_is_not_begun(hub):
    hub.files[0].size = 1 << 60
    with pytest.raises(ModelError, match="does not fit on the disk"):
        local_folder("org/model")
    assert not hub.asked


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--revision"):
        local_folder(tmp_path, "main")


@pytest.mark.parametrize("name", ["org/a..b", "org/a--b"])
def test_what_the_hub_calls_no_repo_id_is_refused(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not a repo id"):
        local_folder(name)


def test_a_cached_model_is_found_without_a_network(hub, tmp_path):
    class Deaf:
        def model_info(self, repo, revision=None, files_metadata=False):
            raise RuntimeError("a network library's own kind of error")

    hub.monkeypatch.setattr(huggingface_hub, "HfApi", Deaf)
    assert local_folder("org/model") == tmp_path


def test_an_unreachable_hub_says_what_to_try(hub):
    def nobody(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    hub.monkeypatch.setattr(huggingface_hub, "snapshot_download", nobody)
    with pytest.raises(ModelError, match="hub does not answer"):
        local_folder("org/model")


def test_a_download_that_fills_the_disk_names_the_cache(hub):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    hub.monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ModelError, match=r"HF_HUB_CACHE.*fetched is kept") as refused:
        local_folder("org/model")
    assert refused.value.got == "No space left on device"
