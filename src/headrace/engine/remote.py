"""A checkpoint on the hub, indexed without downloading it: JSON files, and headers of shards.

A safetensors header says all that a plan needs, and is some kilobytes of a shard of gigabytes: it
is fetched by HTTP range requests. The token goes to the hub alone, never to where it redirects.
What comes back is read with the same suspicion as files from disk (``memory.headers``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from headrace import __version__
from headrace.errors import CheckpointError, ModelError
from headrace.memory.checkpoint import INDEX
from headrace.memory.headers import (
    MAX_JSON_BYTES,
    Header,
    parse_document,
    parse_header,
)

FIRST_BYTES = 32 << 10
"""Of a shard: most headers are no longer."""

AT_ONCE = 8
TIMEOUT_SECONDS = 15.0


class Piece(NamedTuple):
    """Bytes of a file, and how many the whole file has."""

    data: bytes
    file_bytes: int


class HubFiles:
    """The small files of one repository, each fetched once. A ``memory.checkpoint.Files``.

    ``template`` makes a URL of ``repo_id``, ``revision`` and ``filename``. All files come from
    the commit that the first answer names. Raises ModelError where the hub refuses, or does not
    answer, with what to try.
    """

    def __init__(self, repo: str, revision: str, template: str, token: str | None = None) -> None:
        self._repo = repo
        self._asked = self._revision = revision
        self._template = template
        self._token = token
        self._kept: dict[str, Piece | None] = {}
        self._indexed: frozenset[str] = frozenset()
        self._redirects = _Redirects()
        self._opener: OpenerDirector = build_opener(self._redirects)

    def __str__(self) -> str:
        return f"{self._repo} on the hub"

    def has(self, name: str) -> bool:
        """Whether the repository holds the file. Shards are taken at their index's word."""
        return name in self._shards() or self._begin(name) is not None

    def document(self, name: str, most_bytes: int) -> dict[str, Any]:
        """The JSON object in a file of at most ``most_bytes``."""
        piece = self._begin(name)
        if piece is None:
            raise CheckpointError(f"{self} has no {name}", hint="a repository with a checkpoint")
        if piece.file_bytes > most_bytes:
            raise CheckpointError(
                f"{name} is too large", expected=f"at most {most_bytes} bytes", got=piece.file_bytes
            )
        rest = self._range(name, len(piece.data), piece.file_bytes)
        return parse_document(piece.data + rest, name)

    def headers(self, names: Sequence[str]) -> tuple[Header, ...]:
        """The headers of these shards, several fetched at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return tuple(pool.map(self._header, names))

    def listing(self) -> list[str]:
        """Names of the files that were found."""
        return sorted(name for name, piece in self._kept.items() if piece is not None)

    def _header(self, name: str) -> Header:
        piece = self._begin(name)
        if piece is None:
            raise CheckpointError(f"shard {name!r} is missing from {self}")
        kept = piece.data

        def read(nbytes: int, at: int) -> bytes:
            end = at + nbytes
            return kept[at:end] + self._range(name, max(at, len(kept)), end)

        return parse_header(read, piece.file_bytes, name)

    def _shards(self) -> frozenset[str]:
        """Names in the index, once it was fetched."""
        piece = self._kept.get(INDEX)
        if piece is not None and not self._indexed:
            with suppress(ValueError, KeyError, AttributeError, TypeError):
                self._indexed = frozenset(json.loads(piece.data)["weight_map"].values())
        return self._indexed

    def _begin(self, name: str) -> Piece | None:
        """The first bytes of a file (all of a JSON file); None if there is no such file."""
        if name not in self._kept:
            most = MAX_JSON_BYTES if name.endswith(".json") else FIRST_BYTES
            self._kept[name] = self._fetch(name, 0, most)
        return self._kept[name]

    def _range(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of a file that is there."""
        if start >= end:
            return b""
        piece = self._fetch(name, start, end)
        if piece is None or len(piece.data) != end - start:
            raise CheckpointError(
                f"{name} of {self} is cut short", expected=f"{end - start} bytes from {start}",
                got=0 if piece is None else len(piece.data),
            )  # fmt: skip
        return piece.data

    def _fetch(self, name: str, start: int, end: int) -> Piece | None:
        request = Request(self._url(name), headers={"User-Agent": f"headrace/{__version__}"})
        request.add_header("Range", f"bytes={start}-{end - 1}")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                self._pin(answer.headers)
                return _piece(answer, answer.status, start, end, name)
        except HTTPError as refusal:
            with refusal:
                return self._refused(refusal, start)
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise no_answer(self._repo, f"{type(reason).__name__}: {reason}"[:200]) from error

    def _refused(self, refusal: HTTPError, start: int) -> Piece | None:
        """None when the file is not there, and an empty piece of an empty file. Raises ModelError
        otherwise."""
        code = refusal.headers.get("X-Error-Code", "")
        if refusal.code == 416 and start == 0:
            return Piece(b"", 0)
        if code == "GatedRepo" or (refusal.code == 403 and not code):
            raise gated(self._repo)
        if code == "RevisionNotFound":
            raise no_revision(self._repo, self._asked)
        if code == "RepoNotFound" or refusal.code == 401:
            raise no_repository(self._repo)
        if refusal.code == 404:
            return None
        raise no_answer(self._repo, f"HTTP {refusal.code} {refusal.reason}")

    def _pin(self, headers: HTTPMessage) -> None:
        """Take all that follows from the commit that answered first."""
        commit = headers.get("X-Repo-Commit") or self._redirects.commit
        if commit and commit.isalnum() and len(commit) <= 64:
            self._revision = commit

    def _url(self, name: str) -> str:
        return self._template.format(
            repo_id=self._repo, revision=quote(self._revision, safe=""), filename=quote(name)
        )


def gated(repo: str) -> ModelError:
    """The repository wants its terms accepted."""
    return ModelError(
        f"{repo} is gated",
        got="no access with the token at hand",
        hint="accept its terms on the hub, then set HF_TOKEN",
    )


def no_repository(repo: str) -> ModelError:
    """There is none, or none that this token may see."""
    return ModelError(
        f"no model {repo} on the hub", hint="check the name; a private one needs HF_TOKEN"
    )


def no_revision(repo: str, revision: str | None) -> ModelError:
    """The repository is there, the branch, tag or commit is not."""
    return ModelError(
        f"{repo} has no such revision", expected="a branch, tag or commit", got=revision
    )


def no_answer(repo: str, got: str) -> ModelError:
    """No network, or a hub that is out of order."""
    return ModelError(
        f"{repo} is neither a folder here nor in the cache, and the hub does not answer",
        got=got,
        hint="a local folder, or HF_HUB_OFFLINE=0 and a network",
    )


class _Redirects(HTTPRedirectHandler):
    """Follows the hub to where files are stored. The token stays with the host it is for."""

    def __init__(self) -> None:
        self.commit: str | None = None

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        self.commit = headers.get("X-Repo-Commit") or self.commit
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following is not None and token and _origin(req.full_url) == _origin(newurl):
            following.add_unredirected_header("Authorization", token)
        return following


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _piece(answer: IO[bytes], status: int, start: int, end: int, name: str) -> Piece:
    """What an answer holds, no more than was asked for. Raises CheckpointError."""
    headers: HTTPMessage = answer.headers  # type: ignore[attr-defined]
    if status == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
        data = answer.read(end - start)
    else:  # the whole file, from its beginning: no more of it is read than was asked for
        total = headers.get("Content-Length", "")
        data = answer.read(end)[start:]
    if not total and len(data) < end - start:
        return Piece(data, start + len(data))  # it came in chunks, to its end
    if not total.isdecimal() or len(total) > 18:
        raise CheckpointError(f"the hub does not say how long {name} is", got=total[:80] or None)
    return Piece(data, int(total))
