"""Jobs: opened, moved from status to status, concluded (the outcome is known), asked to stop."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from psycopg.types.json import Jsonb

from app.ledger import carried, chain, turns
from app.ledger.chain import Entry
from app.models import ask, db
from app.types import REASONS, JobStatus, Trigger

_S = JobStatus
_ENDS = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED})
MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    _S.PENDING: frozenset({_S.QUEUED}) | _ENDS,
    _S.QUEUED: frozenset({_S.RUNNING}) | _ENDS,
    _S.RUNNING: frozenset({_S.WAITING}) | _ENDS,
    _S.WAITING: frozenset({_S.QUEUED, _S.RUNNING}) | _ENDS,
}


def open_job(
    *,
    pipeline: str,
    trigger: Trigger,
    trigger_key: str,
    instructions: str,
    requester: str,
    priority: int = 0,
    retry_of: int | None = None,
    carry: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Entry | None:
    """A new pending job, locked, in the open transaction; None when this trigger already made one.

    `carry` holds columns taken over from the job that is retried (branch, pull request).
    """
    columns: dict[str, Any] = {
        "pipeline": pipeline,
        "repository_id": trigger.repository_id,
        "repository": trigger.repository,
        "number": trigger.number,
        "instructions": chain.redact(instructions),
        "requester": requester,
        "requester_id": trigger.actor_id,
        "trigger": Jsonb(chain.redact(asdict(trigger))),
        "trigger_key": trigger_key,
        "priority": priority,
        "retry_of": retry_of,
        "metadata": Jsonb(metadata or {}),
        **(carry or {}),
    }
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    made = ask(
        f"insert into runner_jobs ({names}) values ({marks}) on conflict (trigger_key) do nothing "
        "returning *, clock_timestamp() as now",
        *columns.values(),
    )
    if not made.rows:
        return None
    entry = Entry(made.rows[0]["id"], made)
    entry.event(
        "job.created",
        actor=requester,
        pipeline=pipeline,
        repository=trigger.repository,
        number=trigger.number,
        source=trigger.kind,
        text_sha256=trigger.text_sha256,
        retry_of=retry_of,
        **({"found": metadata["found"]} if metadata and "found" in metadata else {}),
    )
    return entry


def move(entry: Entry, to: JobStatus, *, actor: str = "system:stitcher", **data: Any) -> None:
    """Change the status of a locked job, with its event and its moment. The one place where that happens."""
    was = JobStatus(entry["status"])
    if to not in MOVES.get(was, frozenset()):
        raise ValueError(f"a job does not go from {was} to {to}")
    moment = {_S.QUEUED: "queued_at", _S.RUNNING: "started_at"}.get(to, "finished_at" if to.terminal else "")
    if to.terminal and entry["reason"] != "done":  # that one was published
        carried.not_wanted(entry, to.value)
    if moment and not (moment == "started_at" and entry["started_at"]):
        entry.set(**{moment: entry.now})
    entry.set(status=to.value)
    entry.event("job.started" if to is _S.RUNNING else f"job.{to.value}", actor=actor, **data)


def start(entry: Entry, minutes: float) -> None:
    """Queued → running; the job's time limit begins."""
    entry.set(deadline_at=entry.now + timedelta(minutes=minutes))
    move(entry, _S.RUNNING)
    turns.started(entry["repository_id"], entry["requester_id"])


def conclude(entry: Entry, reason: str, detail: str = "") -> None:
    """Fix the outcome of a job, once. It ends when its closing steps have run."""
    if entry["reason"] is not None:
        return
    if reason not in REASONS:
        reason, detail = "internal_error", f"{reason}: {detail}"
    entry.set(reason=reason, detail=chain.redact(detail))


def request_cancel(entry: Entry, actor: str) -> bool:
    """Ask a job to stop; False when it has ended or its outcome is already known."""
    if entry["finished_at"] is not None or entry["reason"] is not None or entry["cancel_requested_at"]:
        return False
    entry.set(cancel_requested_at=entry.now, cancelled_by=actor)
    return True


def rename(job_id: int, repository: str) -> None:
    """The job's repository has another name now."""
    with chain.entry(job_id) as job:
        job.set(repository=repository)


def remember_repository(repository_id: int, full_name: str, default_branch: str, private: bool, label: str) -> None:
    db.execute_sql(
        "insert into repositories (id, full_name, default_branch, private, trigger_label) values (%s,%s,%s,%s,%s) "
        "on conflict (id) do update set full_name = excluded.full_name, default_branch = excluded.default_branch, "
        "private = excluded.private, trigger_label = excluded.trigger_label, seen_at = clock_timestamp()",
        (repository_id, full_name, default_branch, private, label),
    )


def remember_self(user_id: int, login: str) -> None:
    """Store which account is the bot's own, so that the receiver can drop its own actions without asking."""
    with db.atomic():
        db.execute_sql("update users set is_self = false where is_self and id <> %s", (user_id,))
        db.execute_sql(
            "insert into users (id, login, is_self) values (%s,%s,true) on conflict (id) do update "
            "set login = excluded.login, is_self = true, seen_at = clock_timestamp()",
            (user_id, login),
        )


def store_snapshot(job_id: int, sha256: str, body: dict[str, Any]) -> None:
    """Keep what the agent will see. Frozen: the first one of a job stays."""
    db.execute_sql(
        "insert into context_snapshots (job_id, sha256, body) values (%s,%s,%s) on conflict (job_id) do nothing",
        (job_id, sha256, Jsonb(chain.redact(body))),
    )
