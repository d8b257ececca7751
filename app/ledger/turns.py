"""Whose turn it is: the queues of the repositories, and who was served last.

One rule: nobody's second comes before somebody else's first, however long the line of one person or repository is.
"""

from __future__ import annotations

from typing import Any

from app.models import fetch, fetch_one, send

AGING_CAP = 20  # who waits gains one point of priority a minute, up to this many

# SQL: the queued jobs with their place in the queue of their repository, from 1. Somebody's second job at once comes
# after everybody's first. Within one turn priority decides, to which ageing lifts what waits; then who started a job
# longest ago.
_AGED = (
    "least(max(j.priority) over (partition by j.repository_id), j.priority + least("
    f"{AGING_CAP}, floor(extract(epoch from clock_timestamp() - j.queued_at) / 60)))"
)
QUEUE = f"""
select o.id, o.repository_id, o.requester_id, o.branch, row_number() over (
    partition by o.repository_id order by o.aged - {AGING_CAP + 1} * o.turn desc, o.served nulls first, o.id) as place
from (
    select a.*, a.running
        + row_number() over (partition by a.repository_id, a.requester_id order by a.aged desc, a.id) as turn
    from (
        select j.id, j.repository_id, j.requester_id, j.branch, {_AGED} as aged, t.at as served,
            coalesce(r.running, 0) as running
        from runner_jobs j left join turns t on t.scope = 'queue:' || j.repository_id and t.who = j.requester_id
        left join (
            select repository_id, requester_id, count(*) as running from runner_jobs
            where status = 'running' and reason is null group by 1, 2
        ) r on r.repository_id = j.repository_id and r.requester_id = j.requester_id
        where j.status = 'queued' and j.reason is null
    ) a
) o"""
FREE_BRANCH = (  # SQL: no running job has the branch of the row `q` of QUEUE
    "not exists (select 1 from runner_jobs b where b.repository_id = q.repository_id and b.branch = q.branch "
    "and b.status = 'running' and b.reason is null)"
)
_SERVED = "on conflict (scope, who) do update set at = excluded.at"


def paused(repository_id: str) -> str:
    """SQL: whether the repository whose id stands there, or everything, is paused."""
    return (
        "exists (select 1 from pauses p where p.ended_at is null "
        f"and (p.repository_id is null or p.repository_id = {repository_id}))"
    )


def served_before(pool: str, alias: str) -> str:
    """SQL: when a slot of the pool was last given to the person or the repository of the row; takes the pool twice."""
    return (
        f"greatest((select at from turns where scope = {pool}::text || ':person' and who = {alias}.requester_id), "
        f"(select at from turns where scope = {pool}::text || ':repository' and who = {alias}.repository_id))"
    )


def started(repository_id: int, requester_id: int) -> None:
    """A job of this person starts: others of the repository are before them now."""
    send(
        f"insert into turns (scope, who, at) values (%s, %s, clock_timestamp()) {_SERVED}",
        f"queue:{repository_id}",
        requester_id,
    )


def given(pool: str, step_ids: list[int]) -> None:
    """Slots of the pool were given to these steps: people and repositories that got none are before theirs now."""
    send(
        "insert into turns (scope, who, at) select %s::text || ':' || v.what, v.who, max(clock_timestamp()) "
        "from job_steps s join runner_jobs j on j.id = s.job_id cross join lateral (values "
        "('person', j.requester_id), ('repository', j.repository_id)) v (what, who) where s.id = any(%s) "
        f"group by v.what, v.who order by v.what, v.who {_SERVED}",  # each row once: the clock moves between two
        pool,
        step_ids,
    )


def ahead(job_id: int, repository_id: int, branch: str | None) -> dict[str, Any]:
    """What decides whether a queued job may start, of its own repository.

    running: jobs at work; same_branch: whether one of them, or a queued one with a better right, has its branch;
    before_us: branches that others with a better right could start on (who waits for a busy branch steps aside);
    paused: whether the repository, or everything, is paused. Who is queued by this very transaction comes last.
    """
    row = fetch_one(
        f"with queue as (select * from ({QUEUE}) q where q.repository_id = %s), "
        "busy as (select branch from runner_jobs where repository_id = %s and status = 'running' and reason is null), "
        "first as (select branch from queue where id <> %s "
        "and place < coalesce((select place from queue where id = %s), 1000000)) "
        "select (select count(*) from busy) as running, "
        "exists (select 1 from busy where branch = %s) or exists (select 1 from first where branch = %s) "
        "as same_branch, "
        "(select count(distinct branch) from first where branch not in (select branch from busy)) as before_us, "
        f"{paused('%s::bigint')} as paused",
        repository_id,
        repository_id,
        job_id,
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
