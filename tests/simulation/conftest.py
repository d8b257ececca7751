"""A simulation for each test: a database of its own, and the patches for as long as the test lasts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.postgres import Cluster
from tests.simulation.store import Store
from tests.simulation.world import Simulation

_numbers = itertools.count(1)


@pytest.fixture
def simulation(cluster: Cluster, tmp_path: Path) -> Iterator[Simulation]:
    store = Store(cluster, f"simulation_{next(_numbers)}")
    try:
        with Simulation(store, tmp_path / "data").in_place() as made:
            yield made
    finally:
        store.close()
