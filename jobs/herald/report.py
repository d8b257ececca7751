"""herald.report: the last words. The closing comment mentions the requester; the status comment gets its final form."""

from __future__ import annotations

from typing import Any

from app import queries
from app.context import Context
from app.ledger import effects
from app.ledger.chain import transaction
from app.types import Done, Job, Result
from jobs.herald.deliver import deliver

ONCE_AN_HOUR = ("rate_limited", "failing_repeatedly")  # refusals that must not become a flood themselves


def report(context: Context) -> Result:
    """Say how the job ended. When Gitea is away the words stay planned and go out later; the job ends all the same."""
    job = context.job
    planned: list[int] = []
    with transaction():
        if job.number is not None:
            place: dict[str, Any] = {
                "repository_id": job.repository_id,
                "repository": job.repository,
                "number": job.number,
            }
            closing = _last_word(job, place)
            planned += [closing] if closing else []
    waiting = [
        effect["id"]
        for effect in queries.effects(job.id)
        if effect["kind"] == "commit.status" and effect["state"] == "planned"
    ]
    for effect_id in [*planned, *waiting]:
        deliver(effect_id, context.clients)
    _record(context)
    return Done(output={"said": len(planned)})


def _last_word(job: Job, place: dict[str, Any]) -> int | None:
    """Plan the closing comment. A mere sign is for who was told of the same limit within the hour, and for a bot that
    was refused: it might answer a comment.
    """
    refused = job.base_sha is None and job.reason != "cancelled_by_user"
    if (job.reason in ONCE_AN_HOUR and queries.told_lately(job)) or (refused and queries.asked_by_bot(job.id)):
        trigger = job.trigger
        commented = trigger.object_id if trigger.kind == "comment" else None
        target = {**place, "comment_id": commented, "content": "confused"}
        return effects.plan_once(f"job:{job.id}:declined", "reaction", target, job_id=job.id)
    return effects.plan_once(f"job:{job.id}:closing", "comment.closing", place, job_id=job.id)


def _record(context: Context) -> None:
    for kind in ("status", "closing"):
        effect = queries.effect(f"job:{context.job.id}:{kind}")
        if effect and effect["external_id"]:
            context.event("comment.posted", what=kind, comment_id=effect["external_id"])
