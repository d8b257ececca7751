"""What people ask for: a new job, its end, its repetition or continuation. Callers have authorised the person."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from app import queries
from app.ledger import chain, effects, jobs, slots, steps
from app.ledger.chain import Entry
from app.pipeline import plan
from app.queries import SavedWork
from app.queue import queue_name, ring, ring_for
from app.stitcher.advance import CLICKS, step_forward
from app.types import Job, Pool, Trigger

CLICK_SECONDS = 2  # what one click changes, Gitea stamps within this time; its stamps are whole seconds


def submit(
    trigger: Trigger,
    *,
    trigger_key: str,
    instructions: str,
    pipeline: str = "implement",
    requester: str = "",
    priority: int = 0,
    metadata: dict[str, Any] | None = None,
) -> int | None:
    """Open a pending job in the open transaction, acknowledge it, ring for its admission.

    The job's id, or None when this trigger already has a job.
    """
    job = jobs.open_job(
        pipeline=pipeline,
        trigger=trigger,
        trigger_key=trigger_key,
        instructions=instructions,
        requester=requester or f"gitea:{trigger.actor}",
        priority=priority,
        metadata=metadata,
    )
    if job is None:
        return None
    _begin(job, trigger)
    return job.id


def _begin(job: Entry, trigger: Trigger) -> None:
    steps.lay(job, plan(job["pipeline"]), round=1)
    acknowledge(trigger, f"job:{job.id}:eyes", job_id=job.id)
    step_forward(job)
    job.close()


def acknowledge(trigger: Trigger, key: str, *, job_id: int | None = None, delivery_id: int | None = None) -> None:
    """👀 on the text that asked, as soon as a control worker is free."""
    if trigger.kind not in ("comment", "opened", "assigned", "labeled", "review"):
        return
    target = {
        "repository_id": trigger.repository_id,
        "repository": trigger.repository,
        "number": trigger.number,
        "comment_id": trigger.object_id if trigger.kind == "comment" else None,
        "content": "eyes",
    }
    statement, params = effects.plan_ringing(
        key, "reaction", target, queue_name(Pool.CONTROL), job_id=job_id, delivery_id=delivery_id
    )
    ring_for(statement, *params)


def cancel(job_id: int, actor: str) -> bool:
    """Stop a job; False when it has ended or is ending. Its running steps see it within half a second."""
    with chain.entry(job_id) as job:
        if not jobs.request_cancel(job, actor):
            return False
        step_forward(job)
    return True


def retry(
    job: Job,
    *,
    actor: str,
    actor_id: int,
    login: str,
    key: str,
    instructions: str | None = None,
    permission: str | None = None,
    at: str = "",
    until_comment: int | None = None,
    saved: SavedWork | None = None,
    added: str = "",
) -> int | None:
    """A new job for the work of a finished one: same branch, pull request and status comment.

    `key` makes the request unique (one retry per command). None when that retry exists already. What people who may
    ask wrote up to it counts: until the moment `at`, and the comment `until_comment` where it was asked in one.
    `saved` = go on from this work instead of the branch; `added` = further instructions.
    """
    trigger = replace(job.trigger, actor_id=actor_id, actor=login, permission=permission, at=at or job.trigger.at)
    with chain.entry(job.id) as old:
        new = jobs.open_job(
            pipeline=job.pipeline,
            trigger=trigger,
            trigger_key=f"{'continue' if saved else 'retry'}:{job.id}:{key}",
            instructions=job.instructions if instructions is None else instructions,
            requester=actor,
            priority=job.priority,
            retry_of=job.id,
            carry={
                "branch": job.branch,
                "pull_request": job.pull_request,
                "access": job.access,
                **({"host": saved.host} if saved else {}),  # its commit is in that host's mirror and nowhere else
            },
            metadata=_carried(job, actor.removeprefix("gitea:"), until_comment, saved, added),
        )
        if new is None:
            return None
        old.event("job.retried", actor=actor, by=new.id, continues=saved is not None)
        _begin(new, trigger)
    return new.id


def push_saved(job: Job, saved: SavedWork, actor: str) -> int:
    """Have the kept work of a job pushed as a branch to look at, by a herald where it lies; the effect's id."""
    target = {
        "repository_id": job.repository_id,
        "repository": job.repository,
        "branch": saved.branch,
        "ref": saved.ref,
        "sha": saved.sha,
        "start": saved.start,
        "host": saved.host,
    }
    with chain.entry(job.id) as entry:
        effect = effects.plan(f"job:{job.id}:wip", "wip.push", target, job_id=job.id)
        entry.event("wip.requested", actor=actor, effect=effect, branch=saved.branch, sha=saved.sha)
        ring(Pool.CONTROL, "herald.deliver", effect, host=saved.host)
    return effect


def _carried(job: Job, by: str, until_comment: int | None, saved: SavedWork | None, added: str) -> dict[str, Any]:
    """What the new job knows besides: instructions added so far, how far the comments count, where it goes on."""
    known = [*job.metadata.get("added", ()), *([{"by": by, "text": added}] if added.strip() else [])]
    found: dict[str, Any] = {"added": known} if known else {}
    if until_comment is not None:
        found["until_comment"] = until_comment
    if saved:
        found["continues"] = {**asdict(saved), "reason": job.reason}
    return chain.redact(found)  # type: ignore[no-any-return]


def same_click(trigger: Trigger) -> Job | None:
    """The job of the same issue that another event of the same click has made already.

    Opening an issue with an assignee and a label yields up to four deliveries, in any order, some of them late: a job
    that is still open counts, and one that was asked for within the same few seconds.
    """
    if trigger.number is None or trigger.kind not in CLICKS:
        return None
    slots.lock_issue(trigger.repository_id, trigger.number)
    others = queries.issue_jobs(trigger.repository_id, trigger.number)
    return next((job for job in others if job.trigger.kind in CLICKS and _together(job, trigger)), None)


def _together(job: Job, trigger: Trigger) -> bool:
    if not job.status.terminal:
        return True
    try:
        apart = datetime.fromisoformat(trigger.at) - datetime.fromisoformat(job.trigger.at)
        return abs(apart.total_seconds()) <= CLICK_SECONDS
    except (TypeError, ValueError):
        return False  # a moment that cannot be read or compared
