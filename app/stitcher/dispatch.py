"""Admission: which job may start, and for which ready steps the doorbell rings. The queue's order never decides."""

from __future__ import annotations

from app import queries
from app.ledger import slots
from app.ledger.chain import Entry
from app.queue import ring, ring_many
from app.types import Pool

AGING_SECONDS = 60  # a waiting step gains one point of priority a minute …
AGING_CAP = 20  # … up to this many
BELL_SECONDS = 5  # a bell that nobody answered is rung again after this
_CONTROL_AT_ONCE = 1000
_TOLD_AT_ONCE = 50


def dispatch(pool: Pool) -> None:
    """Ring for ready steps of a pool: all of them for control, as many as there are free slots elsewhere."""
    free = _CONTROL_AT_ONCE
    if pool is not Pool.CONTROL:
        slots.lock_pool(list(Pool).index(pool))
        free = queries.workers_alive(pool.value) - slots.busy(pool.value, BELL_SECONDS)
    if free <= 0:
        return
    for row in slots.take_bells(
        pool.value, free, bell_seconds=BELL_SECONDS, aging_cap=AGING_CAP, aging_seconds=AGING_SECONDS
    ):
        ring(pool, task_of(row["name"]), row["id"])


def task_of(step_name: str) -> str:
    """The Huey task of a step: gates share one."""
    return ".".join(step_name.split(".")[:2])


def may_start(job: Entry) -> bool:
    """Whether a queued job may run now: its repository has a free slot, its branch is free, and it is its turn."""
    slots.lock_starting()
    limit = int((job["rules"] or {}).get("limits", {}).get("concurrent", 1))
    counts = slots.ahead(job.id, job["repository_id"], job["branch"], job["priority"])
    return counts["running"] + counts["before_us"] < limit and not counts["same_branch"]


def wake_repository(job: Entry) -> None:
    """A slot is free: let the jobs that wait for it look again."""
    ring_many(Pool.CONTROL, "stitcher.advance", slots.waiting_jobs(job["repository_id"], 5))


def queue_moved(job: Entry) -> None:
    """A job came into the queue or left it: let the others of its repository say their new place.

    By a bell, for two transactions that touch the comments of several jobs could wait for each other.
    """
    waiting = slots.waiting_jobs(job["repository_id"], _TOLD_AT_ONCE)
    ring_many(Pool.CONTROL, "stitcher.tell", [other for other in waiting if other != job.id])
