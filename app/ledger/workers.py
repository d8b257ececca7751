"""Workers: who is alive. A worker holds a session advisory lock for as long as its process lives."""

from __future__ import annotations

from app.models import db, execute, fetch_one

LOCK_CLASS = 0x6D6F7361  # "mosa": first key of every worker's advisory lock; the second is its id


def alive(worker_id: str) -> str:
    """SQL: the worker whose id stands in this column holds its session lock, in this database of the server."""
    return (
        "exists (select 1 from pg_locks l where l.locktype = 'advisory' and l.granted "
        "and l.database = (select oid from pg_database where datname = current_database()) "
        f"and l.classid = {LOCK_CLASS} and l.objid = {worker_id})"
    )


def register(boot_id: str, host: str, pid: int, pool: str, slots: int, version: str) -> int:
    row = fetch_one(
        "insert into workers (boot_id, host, pid, pool, slots, version) values (%s,%s,%s,%s,%s,%s) returning id",
        boot_id,
        host,
        pid,
        pool,
        slots,
        version,
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


def bury_dead() -> int:
    """Mark workers whose session lock is gone; how many. A worker younger than 5 s may still be taking its lock."""
    return execute(
        "update workers w set ended_at = clock_timestamp() where w.ended_at is null "
        f"and w.started_at < clock_timestamp() - interval '5 seconds' and not {alive('w.id')}"
    )
