"""Slots and bells: the locks and row marks behind admission. The rules themselves are in app/stitcher/dispatch.py."""

from __future__ import annotations

from typing import Any

from app.models import execute, fetch, fetch_one

_STARTING = 0x6D6F7332  # advisory lock: jobs start one at a time
_DISPATCH = 0x6D6F7333  # advisory lock per pool


def lock_starting() -> None:
    """Until the open transaction ends, no other job starts."""
    execute("select pg_advisory_xact_lock(%s)", _STARTING)


def lock_pool(number: int) -> None:
    """Until the open transaction ends, nobody else gives away slots of this pool."""
    execute("select pg_advisory_xact_lock(%s, %s)", _DISPATCH, number)


def busy(pool: str, bell_seconds: int) -> int:
    """Slots in use: steps that run, and steps that were rung for a moment ago."""
    row = fetch_one(
        "select count(*) as n from job_steps where pool = %s and (status = 'running' or (status = 'pending' "
        "and rung_at >= clock_timestamp() - %s * interval '1 second'))",
        pool,
        bell_seconds,
    )
    return int(row["n"]) if row else 0


def take_bells(pool: str, limit: int, *, bell_seconds: int, aging_cap: int, aging_seconds: int) -> list[dict[str, Any]]:
    """Mark up to `limit` ready steps as rung, by priority with ageing; their id and name."""
    return fetch(
        "update job_steps set rung_at = clock_timestamp() where id in ("
        "select s.id from job_steps s join runner_jobs j on j.id = s.job_id where s.pool = %s "
        "and s.status = 'pending' and s.ready_at is not null "
        "and (s.run_after is null or s.run_after <= clock_timestamp()) "
        "and (s.rung_at is null or s.rung_at < clock_timestamp() - %s * interval '1 second') "
        "order by j.priority + least(%s, extract(epoch from clock_timestamp() - s.ready_at) / %s) desc, s.ready_at "
        "limit %s for update of s skip locked) returning id, name",
        pool,
        bell_seconds,
        aging_cap,
        aging_seconds,
        limit,
    )


def decline(step_id: int) -> None:
    """A bell was heard and not answered: the sweep may ring again at once."""
    execute("update job_steps set rung_at = null where id = %s and status = 'pending'", step_id)


def ahead(job_id: int, repository_id: int, branch: str | None, priority: int) -> dict[str, int]:
    """Of one repository: jobs that run, that run on the same branch, and that wait with a better right to start."""
    row = fetch_one(
        "select count(*) filter (where status = 'running' and reason is null) as running, "
        "count(*) filter (where status = 'running' and reason is null and branch = %s) as same_branch, "
        "count(*) filter (where status = 'queued' and reason is null and id <> %s and (priority > %s or "
        "(priority = %s and id < %s))) "
        "as before_us from runner_jobs where repository_id = %s and finished_at is null",
        branch,
        job_id,
        priority,
        priority,
        job_id,
        repository_id,
    )
    assert row is not None
    return row


def waiting_jobs(repository_id: int, limit: int) -> list[int]:
    """Queued jobs of a repository, the next one first."""
    return [
        row["id"]
        for row in fetch(
            "select id from runner_jobs where repository_id = %s and status = 'queued' order by priority desc, "
            "id limit %s",
            repository_id,
            limit,
        )
    ]


def lock_issue(repository_id: int, number: int) -> None:
    """Until the open transaction ends, no other delivery makes a job for this issue."""
    execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", f"mosaic-issue:{repository_id}:{number}")
