"""Dead letters: effects that were refused for good or failed for too long; replayed or dropped by hand, on record."""

from __future__ import annotations

from app.ledger import chain
from app.ledger.effects import CARRIED, FREE, note
from app.models import fetch_one


def replay(effect_id: int, actor: str) -> bool:
    """A dead letter is to be tried again now; False when it is not dead. What a step carries goes with its job."""
    return _by_hand(
        effect_id,
        actor,
        "notification.retried",
        "update effects set state = 'planned', wanted = greatest(wanted, told + 1), attempts = 0, error = '', "
        "code = '', waiting_since = null, failed_at = null, failed_in = null, dropped_at = null, rung_at = null, "
        "next_at = clock_timestamp() where id = %s and state = 'failed' and not kind = any(%s) returning *",
    )


def drop(effect_id: int, actor: str) -> bool:
    """A dead or waiting effect is given up for good; False when it is done, dropped, or being carried out."""
    return _by_hand(
        effect_id,
        actor,
        "notification.dropped",
        "update effects set state = 'failed', code = 'dropped', failed_at = coalesce(failed_at, clock_timestamp()), "
        "dropped_at = clock_timestamp(), settle_at = null where id = %s and state <> 'done' and dropped_at is null "
        f"and not kind = any(%s) and {FREE} returning *",
    )


def _by_hand(effect_id: int, actor: str, kind: str, statement: str) -> bool:
    found = fetch_one("select job_id from effects where id = %s", effect_id)
    if found is None:
        return False
    if found["job_id"] is None:
        return fetch_one(statement, effect_id, list(CARRIED)) is not None
    with chain.entry(found["job_id"]) as job:
        row = fetch_one(statement, effect_id, list(CARRIED))
        if row is not None:
            note(job, kind, actor, row)
    return row is not None
