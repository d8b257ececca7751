"""The simulation is worth what it finds: bugs are put into the code one by one, and each has to be found."""

from __future__ import annotations

import pytest

from tests.simulation.machine import explore
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.points import BLOWS, places, strike
from tests.simulation.test_machine import EXAMPLES
from tests.simulation.world import Simulation

pytestmark = pytest.mark.slow


def search(simulation: Simulation, nearest: str) -> None:
    """What the tests of the code as it is do, the part first that is said to show the bug."""
    kind, _, word = nearest.partition(" at ")
    if kind:
        for at in places(simulation, word)[:: 1 if word else 8]:
            strike(simulation, kind, at)
    for first in range(4):
        explore(simulation, EXAMPLES, first=first)
    for kind in BLOWS:
        for at in places(simulation)[::8]:
            strike(simulation, kind, at)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name.replace(" ", "-"))
def test_a_mutant_is_caught(simulation: Simulation, mutant: Mutant) -> None:
    try:
        with mutant.apply():
            search(simulation, mutant.nearest)
    except AssertionError as caught:
        print(f"{mutant.name}: {str(caught).splitlines()[0][:160]}")
    else:
        pytest.fail(f"the mutant {mutant.name!r} ({mutant.what}) survives")
