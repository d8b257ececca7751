"""Nothing is lost and nothing doubled, whoever is killed, frozen or cut off wherever: searched, and counted."""

from __future__ import annotations

import pytest

from tests.simulation import invariants, points
from tests.simulation.forge import FATES
from tests.simulation.machine import BUDGET, explore
from tests.simulation.script import Script
from tests.simulation.world import Simulation

pytestmark = pytest.mark.slow

EXAMPLES = 50  # per seed
PARTS = 4  # of the checkpoints of one scenario


def test_a_quiet_run_does_what_the_scripts_say(simulation: Simulation) -> None:
    scripts = [Script(), Script(gates=("red",)), Script(agent=("fault", "fails")), Script(idle=True)]
    for script in [*scripts, Script(poison="weaver.implement")]:
        with simulation.run() as world:
            world.scripts.by_number[1] = script
            world.mention(1, 11)
            world.mention(1, 11)
            world.quiesce()
            invariants.check(world)
            [job] = world.store.ask("select reason from runner_jobs")
            assert job["reason"] == script.outcome


@pytest.mark.parametrize("first", range(4))
def test_the_machine_finds_nothing(simulation: Simulation, first: int) -> None:
    assert explore(simulation, EXAMPLES, first=first) >= EXAMPLES * min(BUDGET, 1)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", points.BLOWS)
def test_a_process_may_be_struck_at_any_checkpoint(simulation: Simulation, kind: str, part: int) -> None:
    """Every third checkpoint, each in its turn; SIM_EXAMPLES=3 leaves none out."""
    total = points.strike(simulation, "none", -1)
    stride = PARTS * max(1, round(3 / BUDGET))
    assert total > 200
    for at in range(part, total, stride):
        try:
            points.strike(simulation, kind, at)
        except AssertionError as fault:
            raise AssertionError(f"{kind} at checkpoint {at} of {total}:\n{fault}") from fault


def test_the_answer_to_any_write_may_be_lost_or_a_refusal(simulation: Simulation) -> None:
    for at in range(points.writes(simulation)):
        for fate in FATES:
            points.trouble(simulation, at, fate)
