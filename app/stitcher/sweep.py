"""The sweep: finds what fell on the floor. Every control worker runs one; an advisory lock elects who sweeps.

No row can starve another: each is handled on its own, one that is locked is left for the next round, and one that
cannot be handled is tried more and more rarely, and given up in the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from app import queries
from app.ledger import effects, inbox, jobs, slots, steps, workers
from app.ledger.chain import Entry, entry, entry_of_step, transaction
from app.ledger.steps import reclaim
from app.pipeline import PIPELINES
from app.queue import crowded, ring
from app.stitcher import hosts
from app.stitcher.advance import advance, lay_again, specs_of, step_forward, tell
from app.stitcher.dispatch import dispatch
from app.types import JobStatus, Pool

T = TypeVar("T", bound=Hashable)
log = logging.getLogger("mosaic.sweep")
PATIENCE_MS = 50  # how long the sweep waits for a row that somebody else has locked
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0)  # seconds until a row that makes trouble is looked at again
IDLE_SECONDS = 5.0  # between two rounds while no job, no message and no command is open
_swept_at = -IDLE_SECONDS  # on this process's own clock
_trouble: dict[tuple[str, Hashable], _Trouble] = {}


@dataclass(slots=True)
class _Trouble:
    """A row that could not be handled: how often in a row, and when it is due again, on this process's own clock."""

    times: int = 0
    due: float = 0.0


def idle_sweep() -> None:
    """One round, unless nothing is open: then only every few seconds, for what nobody thought of."""
    if time.monotonic() < _swept_at + IDLE_SECONDS and not queries.anything_open():
        return
    sweep()


def sweep() -> None:
    """One round."""
    global _swept_at
    _swept_at = time.monotonic()
    with slots.patience(PATIENCE_MS):
        _each([""], lambda _: workers.end_frozen(), "the list of sessions")
        _each([""], lambda _: workers.bury_dead(), "the list of workers")
        _each(queries.lost_steps(), take_back, "lost step", free)
        _each(hosts.stranded(), hosts.move, "job of a lost host")
        _each(queries.jobs_to_advance(), advance, "job", abandon)
        _each([pool for pool in Pool if not crowded(pool)], _dispatch, "pool")
        if crowded(Pool.CONTROL):
            return  # its workers are behind; every bell that hangs there leads on by itself
        if queries.probe_due():
            ring(Pool.CONTROL, "herald.probe", 0)
        _each(effects.due(), lambda number: ring(Pool.CONTROL, "herald.deliver", number), "effect")
        _each(inbox.due_commands(), lambda number: ring(Pool.CONTROL, "runner.obey", number), "command")


def bury(worker_id: int) -> None:
    """A worker is known to be dead: what it had goes on with the others at once."""
    workers.lay_to_rest(worker_id)
    sweep()


def take_back(step_id: int) -> None:
    """Reclaim one step from a worker that is gone, and let its job go on."""
    with entry_of_step(step_id) as (job, step):
        if step["status"] != "running" or step_id not in queries.lost_steps():
            return
        if reclaim(job, step):
            _again_before(job, step)
        step_forward(job)


def release(step_id: int, fence: int) -> None:
    """Hand a step back that a process which ends still holds: neither a crash nor an attempt, and never twice."""
    with entry_of_step(step_id) as (job, step):
        if step["status"] != "running" or step["fence"] != fence:
            return
        steps.hand_back(job, step, "worker_stopped", "The worker was stopped; another one goes on.", 0.0)
        _again_before(job, step)
        step_forward(job)


def _again_before(job: Entry, step: Mapping[str, Any]) -> None:
    """What has to run again before a step that was lost half-way."""
    rows = specs_of(job)
    redo = next((row.redo for row in rows if row.name == step["name"]), ())
    lay_again(job, redo, step["round"], rows, queries.steps(job.id))


def free(step_id: int, times: int) -> None:
    """Reclaim a lost step of a job that cannot be read, so that its slot is free; the job itself stays as it is."""
    with entry_of_step(step_id) as (job, step):
        if step["status"] == "running" and step_id in queries.lost_steps():
            reclaim(job, step)


def abandon(job_id: int, times: int) -> None:
    """End a job that nobody can read any more; one of a pipeline that only a newer version knows is left to that."""
    if times < len(PAUSES):
        return
    with entry(job_id) as job:
        if job["finished_at"] is not None or job["pipeline"] not in PIPELINES:
            return
        left = [row for row in queries.step_rows(job_id) if row["status"] == "pending"]
        steps.skip(job, left, "internal_error")
        jobs.conclude(job, "internal_error", "Its rows in the database cannot be read; the log names the error.")
        jobs.move(job, JobStatus.FAILED, reason=job["reason"], detail=job["detail"])
    tell(job_id, at_once=True)


def _dispatch(pool: Pool) -> None:
    with transaction():
        dispatch(pool)


def _each(
    items: Iterable[T], work: Callable[[T], object], what: str, otherwise: Callable[[T, int], None] | None = None
) -> None:
    """Do the work for each item. `otherwise` gets an item for which it failed, and how often that was."""
    for item in items:
        key = (what, item)
        known = _trouble.get(key)
        if known and time.monotonic() < known.due:
            continue
        try:
            work(item)
            _trouble.pop(key, None)
        except Exception as error:
            if slots.passing(error):
                log.info("the sweep comes back to %s %s: %s", what, item, error)
                continue
            log.exception("the sweep could not handle %s %s; it goes on with the next", what, item)
            _in_trouble(key, item, otherwise)


def _in_trouble(key: tuple[str, Hashable], item: T, otherwise: Callable[[T, int], None] | None) -> None:
    known = _trouble.setdefault(key, _Trouble())
    known.due = time.monotonic() + PAUSES[min(known.times, len(PAUSES) - 1)]
    known.times += 1
    try:
        if otherwise:
            otherwise(item, known.times)
    except Exception:
        log.exception("%s %s could not be set aside either", *key)
