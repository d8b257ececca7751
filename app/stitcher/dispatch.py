"""Admission: which job may start, and for which ready steps the doorbell rings. The queue's order never decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.ledger import slots, turns
from app.ledger.chain import Entry
from app.queue import ring, ring_for, ring_many
from app.types import Pool

AGING_SECONDS = 60  # a waiting step gains one point of priority a minute …
AGING_CAP = turns.AGING_CAP  # … up to this many
BELL_SECONDS = 5  # a bell that nobody answered is rung again after this
_CONTROL_AT_ONCE = 1000
_TOLD_AT_ONCE = 50
_TURN = {"bell_seconds": BELL_SECONDS, "aging_cap": AGING_CAP, "aging_seconds": AGING_SECONDS}


def dispatch(pool: Pool) -> None:
    """Ring for ready steps of a pool: all of them for control, as many as there are free slots elsewhere."""
    if pool is Pool.CONTROL:
        return _ring(pool, slots.take_bells(pool.value, _CONTROL_AT_ONCE, **_TURN))
    slots.lock_pool(list(Pool).index(pool))
    for host, free in slots.free(pool.value, BELL_SECONDS).items():
        if free > 0:
            rows = slots.take_turns(pool.value, free, host=host, **_TURN)
            turns.given(pool.value, [row["id"] for row in rows])
            _ring(pool, rows)


def ring_ready(job: Entry, step_ids: list[int]) -> None:
    """It is the turn of these control steps of a locked job: ready, and rung for, in one statement."""
    statement, params = slots.ready_at_once(step_ids, Pool.CONTROL.value, job["host"] or "")
    ring_for(statement, *params)


def _ring(pool: Pool, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        ring(pool, task_of(row["name"]), row["id"], host=row["host"])


def task_of(step_name: str) -> str:
    """The Huey task of a step: gates share one."""
    return ".".join(step_name.split(".")[:2])


def may_start(job: Entry) -> bool:
    """Whether a queued job may run now: no pause, a free slot in its repository, a free branch, and its turn."""
    slots.lock_starting()
    limit = int((job["rules"] or {}).get("limits", {}).get("concurrent", 1))
    found = turns.ahead(job.id, job["repository_id"], job["branch"])
    free = found["running"] + found["before_us"] < limit
    return free and not found["same_branch"] and not found["paused"]


def wake_repository(job: Entry) -> None:
    """A slot is free: let the jobs that wait for it look again."""
    ring_many(Pool.CONTROL, "stitcher.advance", turns.waiting_jobs(job["repository_id"], 5, startable=True))


def queue_moved(job: Entry) -> None:
    """A job came into the queue or left it: let the others of its repository say their new place.

    By a bell, for two transactions that touch the comments of several jobs could wait for each other.
    """
    waiting = turns.waiting_jobs(job["repository_id"], _TOLD_AT_ONCE)
    ring_many(Pool.CONTROL, "stitcher.tell", [other for other in waiting if other != job.id])
