"""Both kinds of tokenizer, and tiny checkpoints, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from headrace.engine.tokenizer import Tokenizer

from . import vocabularies
from .engines import make_checkpoint


@pytest.fixture(scope="session", params=["byte_level", "metaspace"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    return Tokenizer.load(vocabularies.save(getattr(vocabularies, request.param)(), folder))


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Case of ``tests.models.tiny`` -> folder of a random checkpoint, made when first asked for."""

    @cache
    def made(case: str) -> Path:
        return make_checkpoint(case, tmp_path_factory.mktemp(case))

    return made


@pytest.fixture(scope="session")
def mixtral(checkpoint_of: Callable[[str], Path]) -> Path:
    """Mixtral, 8 experts."""
    return checkpoint_of("mixtral-e8")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose pages are large beside a disk block: 25 MB in pages of 0.8 MB."""
    from headrace.cli.make_checkpoint import make_checkpoint, small_spec

    folder = tmp_path_factory.mktemp("wide") / "model"
    make_checkpoint(small_spec("mixtral", "bf16", {}), folder)
    return folder
