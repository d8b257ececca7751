"""The sweep: finds what fell on the floor. Every control worker runs one; an advisory lock elects who sweeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from app import queries
from app.ledger import effects, inbox, workers
from app.ledger.chain import entry_of_step, transaction
from app.ledger.steps import reclaim
from app.queue import crowded, ring
from app.stitcher.advance import advance, lay_again, specs_of, step_forward
from app.stitcher.dispatch import dispatch
from app.types import Pool

T = TypeVar("T")
log = logging.getLogger("mosaic.sweep")


def sweep() -> None:
    """One round. Each row is handled on its own, so that none can hide another behind it."""
    workers.bury_dead()
    _each(queries.lost_steps(), take_back, "lost step")
    _each(queries.jobs_to_advance(), advance, "job")
    _each([pool for pool in Pool if not crowded(pool)], _dispatch, "pool")
    if crowded(Pool.CONTROL):
        return  # its workers are behind; every bell that hangs there leads on by itself
    _each(effects.due(), lambda number: ring(Pool.CONTROL, "herald.deliver", number), "effect")
    _each(inbox.due_commands(), lambda number: ring(Pool.CONTROL, "runner.obey", number), "command")


def take_back(step_id: int) -> None:
    """Reclaim one step from a worker that is gone, and let its job go on."""
    with entry_of_step(step_id) as (job, step):
        if step["status"] != "running" or step_id not in queries.lost_steps():
            return
        if reclaim(job, step):
            rows = specs_of(job)
            redo = next((row.redo for row in rows if row.name == step["name"]), ())
            lay_again(job, redo, step["round"], rows, queries.steps(job.id))
        step_forward(job)


def _dispatch(pool: Pool) -> None:
    with transaction():
        dispatch(pool)


def _each(items: Iterable[T], work: Callable[[T], object], what: str) -> None:
    for item in items:
        try:
            work(item)
        except Exception:
            log.exception("the sweep could not handle %s %s; it goes on with the next", what, item)
