"""One town per test process; every story gets a repository of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worlds.town import Story, Town


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town(tmp_path_factory.mktemp("town")) as running:
        yield running


@pytest.fixture
def story(town: Town) -> Story:
    return town.story()
