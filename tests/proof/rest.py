"""Waiting: until everything that was asked for has come to rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.proof.place import Place

T = TypeVar("T")


def at_rest(here: Place, jobs: int) -> bool:
    """So many jobs are known, all have ended, nothing is left to be said about them.

    What was written into doubt has been looked at twice: within the minute in which a request that was late may arrive.
    """
    rows = here.mosaic.sql(
        "select (select count(*) from runner_jobs) as jobs, "
        "(select count(*) from runner_jobs where finished_at is null) as open, "
        "(select count(*) from effects where state = 'planned' "
        "or (settle_at is not null and settled < 2)) as planned, "
        "(select count(*) from job_steps where status in ('pending', 'running')) as steps",
    )
    return bool(rows) and rows[0] == {"jobs": jobs, "open": 0, "planned": 0, "steps": 0}


def settle(here: Place, jobs: int, limit: float) -> float:
    """Wait until all is at rest, at most `limit` seconds; how long it took. The verdict says what is missing."""
    began = time.monotonic()
    while time.monotonic() < began + limit and not at_rest(here, jobs):
        revive(here)
        time.sleep(0.1)
    return time.monotonic() - began


def revive(here: Place) -> None:
    """What a second host's supervisor does for the extra consumers."""
    for one in here.more:
        if not one.alive:
            one.process.wait()
            one.start()


def until(look: Callable[[], T | None], limit: float) -> T | None:
    """What `look` finds within the limit; None when it finds nothing."""
    end = time.monotonic() + limit
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.03)
    return found
