"""From what a user calls a model to a folder: a local one, or a Hugging Face repo id."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

from headrace.engine.remote import HubFiles, gated, no_answer, no_repository, no_revision
from headrace.errors import ModelError, UsageError
from headrace.memory.checkpoint import INDEX, SINGLE, Checkpoint
from headrace.memory.headers import MAX_JSON_BYTES
from headrace.specs.units import format_bytes

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is fetched: weights as safetensors, configuration, tokenizer. Never pickles or code."""


def local_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder of ``model``. A repo id is downloaded into (or found in) the shared Hugging
    Face cache, resumed where an earlier download stopped; free disk is checked first.

    Raises ModelError when there is no such folder, or the hub says no, with what to try;
    UsageError for a revision of a local folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError("--revision is for repo ids", got=f"the local folder {path}")
        return path
    if path.exists():
        raise ModelError(
            "not a checkpoint folder",
            expected="the folder that holds config.json and *.safetensors",
            got=str(model),
        )
    if not REPO_ID.fullmatch(str(model)):
        raise ModelError(
            "no such checkpoint folder",
            expected="a folder with config.json and *.safetensors, or a repo id as org/name",
            got=str(model),
        )
    return _download(str(model), revision)


def hub_checkpoint(repo: str, revision: str | None = None) -> tuple[Checkpoint, bool]:
    """The index of a repository, and whether its files are here: in the shared cache if an earlier
    download left them, else its JSON files and the headers of its shards are fetched, no weights.

    Honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Raises ModelError and its kinds.
    """
    from huggingface_hub import constants

    cached = _cached_snapshot(Path(constants.HF_HUB_CACHE), repo, revision)
    if cached is not None:
        return Checkpoint.open(cached), True
    if constants.HF_HUB_OFFLINE:
        raise no_answer(repo, "HF_HUB_OFFLINE is set")
    from huggingface_hub import get_token

    files = HubFiles(repo, revision or "main", _template(constants.ENDPOINT), get_token())
    return Checkpoint.read(files, Path(repo)), False


def _template(endpoint: str) -> str:
    return endpoint.rstrip("/") + "/{repo_id}/resolve/{revision}/{filename}"


def _cached_snapshot(cache: Path, repo: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the cache, if configuration and weights are both there."""
    place = cache / f"models--{repo.replace('/', '--')}"
    asked = revision or "main"
    try:
        commit = (place / "refs" / asked).read_text().strip()
    except (OSError, ValueError):
        commit = asked
    folder = place / "snapshots" / commit
    files = ("config.json", *_shards(folder))
    return folder if all((folder / name).is_file() for name in files) else None


def _shards(folder: Path) -> list[str]:
    """Names of all weights that belong into ``folder``: an interrupted download leaves the index
    without some of them."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        with (folder / INDEX).open("rb") as file:
            index = json.loads(file.read(MAX_JSON_BYTES))
        return [str(name) for name in set(index["weight_map"].values())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [INDEX]  # whoever opens it says what is wrong with it


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        _check_disk(repo, revision)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise gated(repo) from error
    except RepositoryNotFoundError as error:
        raise no_repository(repo) from error
    except RevisionNotFoundError as error:
        raise no_revision(repo, revision) from error
    except HFValidationError as error:
        raise ModelError("not a repo id", expected="org/name", got=repo) from error
    except ModelError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise no_answer(repo, type(error).__name__) from error
        raise ModelError(
            f"{repo} cannot be stored in the Hugging Face cache",
            got=error.strerror,
            hint="free some space, or set HF_HUB_CACHE to a disk that can be written; "
            "what was fetched is kept",
        ) from error
    except Exception as error:  # whatever the network library of this version of the hub raises
        raise no_answer(repo, type(error).__name__) from error


def _check_disk(repo: str, revision: str | None) -> None:
    """Refuse a download that cannot fit. Says nothing when the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception:  # the download itself will say what is wrong, or find all in the cache
        return
    names = tuple(pattern.lstrip("*") for pattern in FILES)
    wanted = sum(f.size or 0 for f in info.siblings or () if f.rfilename.endswith(names))
    cache = Path(HF_HUB_CACHE)
    held = sum(f.stat().st_size for f in _cached_files(cache, repo))
    base = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(base).free
    if wanted - held > free:
        raise ModelError(
            f"{repo} does not fit on the disk of the Hugging Face cache",
            expected=f"{format_bytes(wanted - held)} free",
            got=f"{format_bytes(free)} in {base}",
            hint="set HF_HUB_CACHE to a larger disk",
        )


def _cached_files(cache: Path, repo: str) -> list[Path]:
    blobs = cache / f"models--{repo.replace('/', '--')}" / "blobs"
    return [p for p in blobs.iterdir() if p.is_file()] if blobs.is_dir() else []
