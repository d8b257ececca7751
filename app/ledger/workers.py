"""Workers: who is alive. A worker holds a session advisory lock for as long as its process lives.

It holds it exclusively. Who watches a worker waits for the same lock shared: it is granted when the process is gone.
"""

from __future__ import annotations

from typing import Any

from app.models import FROZEN_SECONDS, db, execute, fetch, fetch_one

LOCK_CLASS = 0x6D6F7361  # "mosa": first key of every worker's advisory lock; the second is its id
SILENT_SECONDS = 45  # a worker says every 8 s that it lives; one that is silent for so long is frozen or cut off
WATCH = f"select pg_advisory_xact_lock_shared({LOCK_CLASS}, %s)"  # outside a transaction it is given back at once


def alive(worker_id: str) -> str:
    """SQL: the worker whose id stands in this column holds its session lock, in this database of the server."""
    return (
        "exists (select 1 from pg_locks l where l.locktype = 'advisory' and l.granted and l.mode = 'ExclusiveLock' "
        "and l.database = (select oid from pg_database where datname = current_database()) "
        f"and l.classid = {LOCK_CLASS} and l.objid = {worker_id})"
    )


IS_FREE = f"select not {alive('%s')}"


def session_name(pool: str, boot_id: str) -> str:
    """The application name of all connections of one process: when it is killed, none of that name is left."""
    return f"mosaic-{pool}-{boot_id[:8]}"


# SQL: whether any connection of the process of worker `w` is left.
_SESSIONS = (
    "exists (select 1 from pg_stat_activity a where a.datname = current_database() "
    "and a.application_name = 'mosaic-' || w.pool || '-' || left(w.boot_id, 8))"
)
# SQL: worker `w` is dead, and has not just lost the one connection with its lock, which it is about to take again.
GONE = f"not {alive('w.id')} and (w.ended_at is not null or not {_SESSIONS})"


def register(boot_id: str, host: str, pid: int, pool: str, slots: int, version: str, signer: str = "") -> int:
    row = fetch_one(
        "insert into workers (boot_id, host, pid, pool, slots, version, signer) values (%s,%s,%s,%s,%s,%s,%s) "
        "returning id",
        boot_id,
        host,
        pid,
        pool,
        slots,
        version,
        signer,
    )
    assert row is not None
    return int(row["id"])


def beat(worker_id: int) -> None:
    """Say that a worker lives, whatever was believed while the database was away."""
    db.execute_sql("update workers set heartbeat_at = clock_timestamp(), ended_at = null where id = %s", (worker_id,))


def drain(worker_id: int) -> None:
    db.execute_sql("update workers set draining = true where id = %s", (worker_id,))


def retire(worker_id: int) -> None:
    db.execute_sql("update workers set ended_at = clock_timestamp() where id = %s and ended_at is null", (worker_id,))


def retired(worker_id: int) -> bool:
    """Whether a worker is off the books already: it has stopped in order, or somebody else has buried it."""
    row = fetch_one("select ended_at is not null as yes from workers where id = %s", worker_id)
    return row is not None and bool(row["yes"])


def bury_dead() -> int:
    """Mark workers that are gone, and those that fell silent; how many.

    A worker younger than 5 s may still be taking its lock. One that was only frozen says so when it goes on.
    """
    return execute(
        "update workers set ended_at = clock_timestamp() where id in (select w.id from workers w "
        "where w.ended_at is null and w.started_at < clock_timestamp() - interval '5 seconds' "
        f"and (w.heartbeat_at < clock_timestamp() - interval '{SILENT_SECONDS} seconds' or ({GONE})) "
        "for update skip locked)"
    )


def end_frozen() -> int:
    """End the sessions of processes that were frozen while they sent a pipeline; how many.

    Such a session keeps its locks and counts as active, so that `idle_in_transaction_session_timeout` never sees it.
    Its moments are of the server's own clock, and are compared with that.
    """
    return len(
        fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and usename = current_user and left(application_name, 6) = 'mosaic' and state = 'active' "
            "and wait_event = 'ClientRead' and xact_start is not null "
            "and state_change < statement_timestamp() - %s * interval '1 second'",
            FROZEN_SECONDS,
        )
    )


def state(worker_id: int) -> dict[str, Any]:
    """What the server says of a worker. locked: it holds its lock; sessions: any connection of its process is left."""
    row = fetch_one(
        f"select {alive('w.id')} as locked, {_SESSIONS} as sessions from workers w where w.id = %s", worker_id
    )
    return row or {"locked": False, "sessions": False}


def server_is_young(seconds: float) -> bool:
    """Whether the database server itself has not run for so long yet: everybody is about to take their locks again."""
    row = fetch_one("select pg_postmaster_start_time() > clock_timestamp() - %s * interval '1 second' as yes", seconds)
    return row is None or bool(row["yes"])


def lay_to_rest(worker_id: int) -> None:
    """A worker is dead: off the books, and what it may have had in hand besides steps is anybody's again.

    Nobody can say which bells it had heard and not answered: those of its pool ring again. What it had sent may
    still arrive: its effects are `unsure`.
    """
    retire(worker_id)
    execute(
        "update job_steps set rung_at = null where id in (select s.id from job_steps s where s.status = 'pending' "
        "and s.ready_at is not null and s.rung_at is not null and s.pool = (select pool from workers where id = %s) "
        "for update skip locked)",
        worker_id,
    )
    execute(
        "update effects set unsure = unsure or worker_id is not null, worker_id = null, lease_until = null, "
        "rung_at = null where id in (select e.id from effects "
        "e where e.worker_id = %s or (e.state = 'planned' and e.worker_id is null and e.rung_at is not null "
        "and exists (select 1 from workers where id = %s and pool = 'control')) for update skip locked)",
        worker_id,
        worker_id,
    )


def others_alive(worker_id: int) -> list[dict[str, Any]]:
    """(id, pool) of all other workers that hold their lock now, by id."""
    return fetch(
        f"select w.id, w.pool from workers w where w.ended_at is null and w.id <> %s and {alive('w.id')} order by w.id",
        worker_id,
    )


def other_signer(host: str, signer: str) -> str:
    """Another host whose live control worker signs with another key than this one; "" when there is none."""
    row = fetch_one(
        "select w.host from workers w where w.ended_at is null and w.pool = 'control' and w.signer not in ('', %s) "
        f"and w.host <> %s and {alive('w.id')} limit 1",
        signer,
        host,
    )
    return str(row["host"]) if row else ""
