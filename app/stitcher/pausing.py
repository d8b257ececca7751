"""Pause and resume: of one repository, or (None) of everything. What runs goes on; what is asked for waits, visibly."""

from __future__ import annotations

from app import queries
from app.ledger import pauses, turns
from app.ledger.chain import transaction
from app.queue import ring_many
from app.types import Pool

_TOLD_AT_ONCE = 200  # queued jobs whose status comment says so at once; the others when they are touched next


def pause(repository_id: int | None, repository: str, actor: str) -> bool:
    """Let no queued job start; False when it is paused already. The operator's takes the place of a person's."""
    with transaction():
        held = queries.open_pause(repository_id) if actor.startswith("cli:") else None
        if held and not held["actor"].startswith("cli:"):
            pauses.resume(repository_id, actor)  # else whoever may resume theirs would end the operator's
        if not pauses.pause(repository_id, repository, actor):
            return False
        ring_many(Pool.CONTROL, "stitcher.tell", turns.waiting_jobs(repository_id, _TOLD_AT_ONCE))
    return True


def resume(repository_id: int | None, actor: str) -> bool:
    """Let queued jobs start again; False when there was no pause."""
    with transaction():
        if not pauses.resume(repository_id, actor):
            return False
        waiting = turns.waiting_jobs(repository_id, _TOLD_AT_ONCE)
        ring_many(Pool.CONTROL, "stitcher.advance", waiting)
        ring_many(Pool.CONTROL, "stitcher.tell", waiting)
    return True
