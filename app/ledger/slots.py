"""Slots and bells: the locks and row marks behind admission. The rules themselves are in app/stitcher/dispatch.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from app.ledger.breaker import CLOSED
from app.ledger.steps import MAX_CRASHES
from app.ledger.turns import served_before
from app.models import UNAVAILABLE, execute, fetch, send
from app.pipeline import ANYWHERE

_STARTING = 0x6D6F7332  # advisory lock: jobs start one at a time
_DISPATCH = 0x6D6F7333  # advisory lock per pool


def lock_starting() -> None:
    """Until the open transaction ends, no other job starts."""
    send("select pg_advisory_xact_lock(%s)", _STARTING)


def lock_pool(number: int) -> None:
    """Until the open transaction ends, nobody else gives away slots of this pool."""
    send("select pg_advisory_xact_lock(%s, %s)", _DISPATCH, number)


def free(pool: str, bell_seconds: int) -> dict[str, int]:
    """Of each host with consumers of a pool: its slots less those in use.

    In use: steps that run, and steps that were rung for a moment ago; where none of the hosts is meant, it is the
    first one's.
    """
    rows = fetch(
        "with up as (select host, sum(slots)::int as slots from workers where pool = %s and ended_at is null "
        "and not draining group by host), "
        "used as (select coalesce(j.host, (select min(host) from up)) as host, count(*)::int as n "
        "from job_steps s join runner_jobs j on j.id = s.job_id where s.pool = %s and (s.status = 'running' "
        "or (s.status = 'pending' and s.rung_at >= clock_timestamp() - %s * interval '1 second')) group by 1) "
        "select up.host, up.slots - coalesce(used.n, 0) as free from up left join used on used.host = up.host "
        "order by up.host",
        pool,
        pool,
        bell_seconds,
    )
    return {row["host"]: int(row["free"]) for row in rows}


@contextmanager
def patience(milliseconds: int) -> Iterator[None]:
    """Within the block, this thread waits no longer than this for a lock that somebody else holds."""
    execute(f"set lock_timeout = {int(milliseconds)}")
    try:
        yield
    finally:
        with suppress(*UNAVAILABLE):  # a connection that is gone took the setting with it
            execute("reset lock_timeout")


def passing(error: Exception) -> bool:
    """Whether the same work may succeed in a moment: the database is away, or somebody held a lock for too long."""
    return isinstance(error, UNAVAILABLE)


# A step that may have killed its worker, with one chance left: its pool runs one of these at a time, so that whoever
# only stood beside the one that kills is told apart from it.
SUSPECT = MAX_CRASHES - 1
_READY = "{0}.ready_at is not null and ({0}.run_after is null or {0}.run_after <= clock_timestamp())"
_ALONE = (
    f"(s.crashes < {SUSPECT} or s.id = (select o.id from job_steps o join runner_jobs p on p.id = o.job_id "
    f"where o.pool = s.pool and o.crashes >= {SUSPECT} and p.host is not distinct from j.host "
    f"and (o.status = 'running' or (o.status = 'pending' and {_READY.format('o')})) "
    "order by o.status = 'running' desc, o.ready_at, o.id limit 1))"
)

# Ready steps of a pool that nobody was rung for a moment ago; those that wait for the forge wait while it is away.
_WANTING = (
    f"s.pool = %s and s.status = 'pending' and {_READY.format('s')} and {_ALONE} "
    "and (s.rung_at is null or s.rung_at < clock_timestamp() - %s * interval '1 second') "
    f"and (s.reason <> 'forge_unavailable' or {CLOSED})"
)


# The host on whose queue the bell of a step `s` of job `j` hangs: "" = anybody's. With one host there is one queue.
_HOST = (
    "case when s.name = any(%s) or (select count(distinct host) from workers where ended_at is null) < 2 then '' "
    "else coalesce(j.host, '') end as host"
)


def take_bells(pool: str, limit: int, *, bell_seconds: int, aging_cap: int, aging_seconds: int) -> list[dict[str, Any]]:
    """Mark up to `limit` ready steps as rung, by priority with ageing; their id, name and host.

    Left out are those that belong to a host where no consumer of this pool lives.
    """
    return fetch(
        "update job_steps s set rung_at = clock_timestamp() from runner_jobs j where j.id = s.job_id and s.id in ("
        f"select s.id from job_steps s join runner_jobs j on j.id = s.job_id where {_WANTING} "
        "and (s.name = any(%s) or j.host is null or exists (select 1 from workers w where w.host = j.host "
        "and w.pool = s.pool and w.ended_at is null)) "
        "order by j.priority + least(%s, extract(epoch from clock_timestamp() - s.ready_at) / %s) desc, s.ready_at "
        f"limit %s for update of s skip locked) returning s.id, s.name, {_HOST}",
        pool,
        bell_seconds,
        list(ANYWHERE),
        aging_cap,
        aging_seconds,
        limit,
        list(ANYWHERE),
    )


def ready_at_once(step_ids: list[int], pool: str, host: str) -> tuple[str, tuple[Any, ...]]:
    """For `queue.ring_for`: it is the turn of these steps of a pool without limit; `host` = the job's, "" if none yet.

    A step that has to wait, or that has to run alone, is made ready and left to the dispatcher.
    """
    return (
        "made as (update job_steps s set ready_at = clock_timestamp(), rung_at = case when s.crashes < %s "
        "and (s.run_after is null or s.run_after <= clock_timestamp()) "
        f"and (s.reason <> 'forge_unavailable' or {CLOSED}) then clock_timestamp() end "
        "where s.id = any(%s) and s.status = 'pending' and s.ready_at is null returning s.id, s.name, s.rung_at), "
        "rung as (select 'mosaic-' || %s::text || case when s.name = any(%s) or %s = '' "
        "or (select count(distinct host) from workers where ended_at is null) < 2 then '' else '@' || %s end as queue, "
        "split_part(s.name, '.', 1) || '.' || split_part(s.name, '.', 2) as task, s.id as number, 0 as priority "
        "from made s where s.rung_at is not null)",
        (SUSPECT, step_ids, pool, list(ANYWHERE), host, host),
    )


def take_turns(
    pool: str, limit: int, *, host: str, bell_seconds: int, aging_cap: int, aging_seconds: int
) -> list[dict[str, Any]]:
    """As `take_bells`, for the few slots that a pool has on one host: people and repositories take turns.

    What is the nth step at once of its person or its repository comes after every first, second, … of others, however
    long it waits. Within one turn priority decides, to which ageing lifts what waits; then who was served longest ago.
    """
    return fetch(
        "with at_work as (select j.requester_id, j.repository_id from job_steps s join runner_jobs j "
        "on j.id = s.job_id where s.pool = %s and (s.status = 'running' or (s.status = 'pending' "
        "and s.rung_at >= clock_timestamp() - %s * interval '1 second'))), "
        "wanting as (select s.id, s.ready_at, j.requester_id, j.repository_id, "
        "least(max(j.priority) over (), j.priority + least(%s, "
        "floor(extract(epoch from clock_timestamp() - s.ready_at) / %s))) as score "
        f"from job_steps s join runner_jobs j on j.id = s.job_id where {_WANTING} "
        "and (j.host is null or j.host = %s)), "
        f"turns as (select w.id, w.ready_at, w.score, {served_before('%s', 'w')} as served, greatest("
        "row_number() over (partition by w.requester_id order by w.score desc, w.ready_at, w.id) "
        "+ (select count(*) from at_work a where a.requester_id = w.requester_id), "
        "row_number() over (partition by w.repository_id order by w.score desc, w.ready_at, w.id) "
        "+ (select count(*) from at_work a where a.repository_id = w.repository_id)) as turn from wanting w) "
        "update job_steps s set rung_at = clock_timestamp() from runner_jobs j where j.id = s.job_id and s.id in ("
        "select s.id from job_steps s join turns t on t.id = s.id where s.status = 'pending' "
        "order by t.score - %s * t.turn desc, t.served nulls first, t.ready_at, t.id limit %s "
        "for update of s skip locked) "
        f"returning s.id, s.name, {_HOST}",
        pool,
        bell_seconds,
        aging_cap,
        aging_seconds,
        pool,
        bell_seconds,
        host,
        pool,
        pool,
        aging_cap + 1,
        limit,
        list(ANYWHERE),
    )


def decline(step_id: int) -> None:
    """A bell was heard and not answered: the sweep may ring again at once."""
    execute("update job_steps set rung_at = null where id = %s and status = 'pending'", step_id)


def lock_issue(repository_id: int, number: int) -> None:
    """Until the open transaction ends, no other delivery makes a job for this issue."""
    send("select pg_advisory_xact_lock(hashtextextended(%s, 0))", f"mosaic-issue:{repository_id}:{number}")
