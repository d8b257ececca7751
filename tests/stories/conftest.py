"""One town per test process; every story gets a repository of its own in it.

Tests marked `practice` turn knobs that only the practice forge has: against a real Gitea they are not collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.worlds.mailbox import Mailbox
from tests.worlds.town import EVENTS, Story, Town


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "practice: turns a knob of the practice forge; left out against a real Gitea")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("REAL_GITEA_URL"):
        return
    left_out = [item for item in items if item.get_closest_marker("practice")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town(tmp_path_factory.mktemp("town")) as running:
        yield running


@pytest.fixture
def story(town: Town) -> Story:
    return town.story()


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with Mailbox() as opened:
        yield opened


@pytest.fixture
def by_post(town: Town, box: Mailbox) -> Story:
    """A story whose deliveries stop at the mailbox: the test hands them to Mosaic."""
    told = town.story(hook=False)
    town.forge.hook(told.repo, box.url, town.mosaic.secret, EVENTS)
    return told
