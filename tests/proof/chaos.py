"""Scenario: one installation under fire. Jobs are asked for all the time while processes are killed and frozen, the
database is restarted, the forge lies, and now and then the whole host loses its power.

One thread does it all, by a table of what is due next: so a run can be read in its log, and nothing races but Mosaic.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.proof.place import Place, place
from tests.proof.rest import revive, settle
from tests.proof.tally import Tally
from tests.proof.tampering import tampering
from tests.proof.trouble import Trouble
from tests.proof.verdict import audit, judge

LANES = 10  # repositories in use at a time: jobs of one repository run one after the other
ISSUES_PER_LANE = 25  # a repository is left for a fresh one after so many: real ones are not all pull requests
OPEN_AT_ONCE = 40  # mentions whose webhook was lost among them: they are found within a minute or two
SETTLE_LIMIT = 300.0  # seconds that everything may take to come to rest after the last blow
LONG_FIRE, LONG_CALM = 420.0, 5.0  # seconds from which a fire is a long one; its pauses are so many times as long
EXTRA = ("control", "control", "agents", "gates")


class Fire:
    """The loop: due actions, in turn."""

    def __init__(self, here: Place, seed: int, calm: float = 1.0) -> None:
        self.here, self.random, self.calm = here, random.Random(seed), calm
        self.trouble = Trouble(here, self.random)
        self.mentions: dict[str, dict[int, int | None]] = {}
        self.lanes: list[str] = []
        self._due: dict[Callable[[], None], float] = {}

    # name of the act -> seconds between two of them
    def acts(self) -> dict[Callable[[], None], tuple[float, float]]:
        trouble, calm = self.trouble, self.calm
        return {
            self.ask: (0.25, 0.25),
            trouble.thaw: (0.1, 0.1),
            self.revive: (0.2, 0.2),
            trouble.kill: (0.1 * calm, 2.0 * calm),
            trouble.freeze: (0.5 * calm, 4.0 * calm),
            trouble.lie: (0.3, 1.5),
            trouble.restart_database: (20.0 * calm, 50.0 * calm),
            trouble.power_cut: (60.0 * calm, 120.0 * calm),
        }

    def burn(self, seconds: float) -> None:
        acts, end = self.acts(), time.monotonic() + seconds
        self._due = {act: time.monotonic() + self.random.uniform(*pause) for act, pause in acts.items()}
        while time.monotonic() < end:
            for act, due in list(self._due.items()):
                if time.monotonic() >= due:
                    act()
                    self._due[act] = time.monotonic() + self.random.uniform(*acts[act])
            time.sleep(0.02)

    def revive(self) -> None:
        revive(self.here)

    # ------------------------------------------------------------ the work

    def ask(self) -> None:
        """Keep so many jobs open; nothing is asked for while the database cannot say how many there are."""
        rows = self.here.mosaic.sql("select count(*) as n from runner_jobs where finished_at is not null")
        if rows:
            for _ in range(min(OPEN_AT_ONCE - (self.asked - rows[0]["n"]), 5)):
                self.one_more()

    @property
    def asked(self) -> int:
        return sum(len(numbers) for numbers in self.mentions.values())

    def one_more(self) -> None:
        while len(self.lanes) < LANES:
            self.here.forge.knob("clear_faults")  # they are meant for the bot, not for who makes repositories
            self.lanes.append(self.here.repository(f"lane-{len(self.mentions)}"))
            self.mentions[self.lanes[-1]] = {}
        repo = self.random.choice(self.lanes)
        self.mentions[repo][self.here.ask(repo, self.random.choice(self.here.people))] = None
        if len(self.mentions[repo]) >= ISSUES_PER_LANE:
            self.lanes.remove(repo)

    def settle(self) -> float:
        """Stop the trouble and wait until all is at rest; the seconds that it took."""
        self.trouble.thaw(everyone=True)
        self.here.forge.knob("clear_faults")
        return settle(self.here, self.asked, SETTLE_LIMIT)


def chaos(path: Path, seconds: float, seed: int = 1) -> list[Tally]:
    """The fire, and what somebody with every right can do to the ledger that it leaves.

    A long one leaves the processes time to work between the blows: where each dies every ten seconds, the supervisor
    waits longer and longer before it starts them again, and few jobs are there to be lost.
    """
    tally, began = Tally("chaos"), time.monotonic()
    with place(path) as here:
        for role in EXTRA:
            here.add(role)
        fire = Fire(here, seed, LONG_CALM if seconds >= LONG_FIRE else 1.0)
        fire.burn(seconds)
        rested = fire.settle()
        judge(here, fire.mentions, tally)
        audit(here, tally)
        _count(fire, rested, tally)
        data = here.mosaic.data / "var"
    tally.seconds = time.monotonic() - began
    return [tally, tampering(data)]


def _count(fire: Fire, rested: float, tally: Tally) -> None:
    trouble, here = fire.trouble, fire.here
    tally.kills, tally.freezes = sum(trouble.kills.values()), trouble.freezes
    hit = here.forge.knob("faults_hit")
    tally.faults = hit + trouble.restarts
    tally.notes += [
        "kills: " + ", ".join(f"{role} {count}" for role, count in sorted(trouble.kills.items())),
        f"{trouble.long_freezes} freezes longer than the lease, {trouble.restarts} restarts of the database, {hit} "
        f"faults of the forge, {here.agent.turns} turns of the agent, at rest {rested:.0f} s after the last blow",
    ]
    errors = here.forge.knob("errors")  # faults of the practice forge itself would make the proof worthless
    tally.expect(not errors, f"the practice forge failed {len(errors)} times: {errors[:1]}")
