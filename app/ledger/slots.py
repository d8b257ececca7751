"""Slots and bells: the locks and row marks behind admission. The rules themselves are in app/stitcher/dispatch.py."""

from __future__ import annotations

from typing import Any

from app.models import execute, fetch, fetch_one, send

_STARTING = 0x6D6F7332  # advisory lock: jobs start one at a time
_DISPATCH = 0x6D6F7333  # advisory lock per pool
AGING_CAP = 20  # who waits gains one point of priority a minute, up to this many

# SQL: the queued jobs with their place in the queue of their repository, from 1. People take turns: somebody's second
# job at once comes after everybody's first, whatever its age; ageing lifts low priorities above high ones.
_AGED = f"j.priority + least({AGING_CAP}, floor(extract(epoch from clock_timestamp() - j.queued_at) / 60))"
QUEUE = f"""
select o.id, o.repository_id, o.requester_id, o.branch,
    row_number() over (partition by o.repository_id order by o.aged - {AGING_CAP + 1} * o.turn desc, o.id) as place
from (
    select j.id, j.repository_id, j.requester_id, j.branch, {_AGED} as aged,
        row_number() over (partition by j.repository_id, j.requester_id order by {_AGED} desc, j.id) + (
            select count(*) from runner_jobs r where r.repository_id = j.repository_id
            and r.requester_id = j.requester_id and r.status = 'running' and r.finished_at is null
        ) as turn
    from runner_jobs j where j.status = 'queued' and j.reason is null
) o"""
FREE_BRANCH = (  # SQL: no running job has the branch of the row `q` of QUEUE
    "not exists (select 1 from runner_jobs b where b.repository_id = q.repository_id and b.branch = q.branch "
    "and b.status = 'running' and b.reason is null)"
)


def paused(repository_id: str) -> str:
    """SQL: whether the repository whose id stands there, or everything, is paused."""
    return (
        "exists (select 1 from pauses p where p.ended_at is null "
        f"and (p.repository_id is null or p.repository_id = {repository_id}))"
    )


def lock_starting() -> None:
    """Until the open transaction ends, no other job starts."""
    send("select pg_advisory_xact_lock(%s)", _STARTING)


def lock_pool(number: int) -> None:
    """Until the open transaction ends, nobody else gives away slots of this pool."""
    send("select pg_advisory_xact_lock(%s, %s)", _DISPATCH, number)


def busy(pool: str, bell_seconds: int) -> int:
    """Slots in use: steps that run, and steps that were rung for a moment ago."""
    row = fetch_one(
        "select count(*) as n from job_steps where pool = %s and (status = 'running' or (status = 'pending' "
        "and rung_at >= clock_timestamp() - %s * interval '1 second'))",
        pool,
        bell_seconds,
    )
    return int(row["n"]) if row else 0


# Ready steps of a pool that nobody was rung for a moment ago.
_WANTING = (
    "s.pool = %s and s.status = 'pending' and s.ready_at is not null "
    "and (s.run_after is null or s.run_after <= clock_timestamp()) "
    "and (s.rung_at is null or s.rung_at < clock_timestamp() - %s * interval '1 second')"
)


def take_bells(pool: str, limit: int, *, bell_seconds: int, aging_cap: int, aging_seconds: int) -> list[dict[str, Any]]:
    """Mark up to `limit` ready steps as rung, by priority with ageing; their id and name."""
    return fetch(
        "update job_steps set rung_at = clock_timestamp() where id in ("
        f"select s.id from job_steps s join runner_jobs j on j.id = s.job_id where {_WANTING} "
        "order by j.priority + least(%s, extract(epoch from clock_timestamp() - s.ready_at) / %s) desc, s.ready_at "
        "limit %s for update of s skip locked) returning id, name",
        pool,
        bell_seconds,
        aging_cap,
        aging_seconds,
        limit,
    )


def take_turns(pool: str, limit: int, *, bell_seconds: int, aging_cap: int, aging_seconds: int) -> list[dict[str, Any]]:
    """As `take_bells`, for a pool with few slots: people and repositories take turns.

    What is the nth step at once of its person or its repository counts for less than any first, second, … of others,
    whatever its age; ageing lifts low priorities above high ones, and priority decides within one turn.
    """
    return fetch(
        "with at_work as (select j.requester_id, j.repository_id from job_steps s join runner_jobs j "
        "on j.id = s.job_id where s.pool = %s and (s.status = 'running' or (s.status = 'pending' "
        "and s.rung_at >= clock_timestamp() - %s * interval '1 second'))), "
        "wanting as (select s.id, s.ready_at, j.requester_id, j.repository_id, "
        "j.priority + least(%s, extract(epoch from clock_timestamp() - s.ready_at) / %s) as score "
        f"from job_steps s join runner_jobs j on j.id = s.job_id where {_WANTING}), "
        "turns as (select w.id, w.ready_at, w.score, greatest("
        "row_number() over (partition by w.requester_id order by w.score desc, w.ready_at, w.id) "
        "+ (select count(*) from at_work a where a.requester_id = w.requester_id), "
        "row_number() over (partition by w.repository_id order by w.score desc, w.ready_at, w.id) "
        "+ (select count(*) from at_work a where a.repository_id = w.repository_id)) as turn from wanting w) "
        "update job_steps set rung_at = clock_timestamp() where id in ("
        "select s.id from job_steps s join turns t on t.id = s.id where s.status = 'pending' "
        "order by t.score - %s * t.turn desc, t.ready_at, t.id limit %s for update of s skip locked) "
        "returning id, name",
        pool,
        bell_seconds,
        aging_cap,
        aging_seconds,
        pool,
        bell_seconds,
        aging_cap + 1,
        limit,
    )


def decline(step_id: int) -> None:
    """A bell was heard and not answered: the sweep may ring again at once."""
    execute("update job_steps set rung_at = null where id = %s and status = 'pending'", step_id)


def ahead(job_id: int, repository_id: int, branch: str | None) -> dict[str, Any]:
    """What decides whether a queued job may start, of its own repository.

    running: jobs at work; same_branch: whether one of them, or a queued one with a better right, has its branch;
    before_us: branches that others with a better right could start on (who waits for a busy branch steps aside);
    paused: whether the repository, or everything, is paused.
    """
    row = fetch_one(
        f"with queue as (select * from ({QUEUE}) q where q.repository_id = %s), "
        "busy as (select branch from runner_jobs where repository_id = %s and status = 'running' and reason is null), "
        "first as (select branch from queue where place < (select place from queue where id = %s)) "
        "select (select count(*) from busy) as running, "
        "exists (select 1 from busy where branch = %s) or exists (select 1 from first where branch = %s) "
        "as same_branch, "
        "(select count(distinct branch) from first where branch not in (select branch from busy)) as before_us, "
        f"{paused('%s::bigint')} as paused",
        repository_id,
        repository_id,
        job_id,
        branch,
        branch,
        repository_id,
    )
    assert row is not None
    return row


def waiting_jobs(repository_id: int | None, limit: int, *, startable: bool = False) -> list[int]:
    """Queued jobs of a repository (None: of all), the next one first; `startable`: those whose branch is free."""
    return [
        row["id"]
        for row in fetch(
            f"select q.id from ({QUEUE}) q where (%s::bigint is null or q.repository_id = %s::bigint) "
            f"and (not %s or {FREE_BRANCH}) order by q.place, q.id limit %s",
            repository_id,
            repository_id,
            startable,
            limit,
        )
    ]


def lock_issue(repository_id: int, number: int) -> None:
    """Until the open transaction ends, no other delivery makes a job for this issue."""
    send("select pg_advisory_xact_lock(hashtextextended(%s, 0))", f"mosaic-issue:{repository_id}:{number}")
