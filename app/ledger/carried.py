"""Effects that a step carries itself, push and pull request: they are wanted as long as their job is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.ledger.chain import Entry, entry
from app.ledger.effects import CARRIED, note, plan, plan_once
from app.ledger.steps import owned
from app.models import fetch
from app.types import LostLease


def plan_for(step: Mapping[str, Any], key: str, kind: str, target: dict[str, Any], *, anew: bool = False) -> None:
    """Plan what a running step carries itself, once or (`anew`) as a new version.

    LostLease when the step is not ours any more: its job may have ended, and nothing is pushed for that.
    """
    with entry(step["job_id"]) as job:
        if not owned(step["id"], step["fence"]):
            raise LostLease(f"{key} is not wanted from us any more")
        (plan if anew else plan_once)(key, kind, target, job_id=job.id)


def not_wanted(job: Entry, ending: str) -> None:
    """A job ends: what herald.publish was to carry and did not is closed, on record, and nobody holds it any more."""
    closed = fetch(
        "update effects set state = 'failed', code = case when state = 'planned' then 'not_wanted' else code end, "
        "error = case when state = 'planned' then %s else error end, unsure = unsure or worker_id is not null, "
        "failed_at = coalesce(failed_at, clock_timestamp()), failed_in = %s, dropped_at = clock_timestamp(), "
        "fence = fence + 1, worker_id = null, lease_until = null, rung_at = null, settle_at = null "
        "where job_id = %s and kind = any(%s) and state <> 'done' and dropped_at is null returning *",
        f"The job was {ending} before this was done.",
        ending,
        job.id,
        list(CARRIED),
    )
    for effect in closed:
        note(job, "notification.dropped", "system:stitcher", effect, code=effect["code"], unsure=effect["unsure"])
