"""Both kinds of tokenizer, loaded once per session from a folder."""

from __future__ import annotations

import pytest

from headrace.engine.tokenizer import Tokenizer

from . import vocabularies


@pytest.fixture(scope="session", params=["byte_level", "metaspace"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    return Tokenizer.load(vocabularies.save(getattr(vocabularies, request.param)(), folder))
