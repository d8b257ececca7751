"""What the audit reads: one snapshot of everything, in ranges of jobs, events as a stream. It changes nothing.

It has a connection of its own (REPEATABLE READ, READ ONLY): what it says is true of one moment while jobs run on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from typing import Any

import psycopg
from psycopg.rows import dict_row

from app.audit_witness import Anchor

Connection = psycopg.Connection[Any]
AT_ONCE = 5000  # events in memory at a time
STAMP = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


@contextmanager
def snapshot(url: str, exported: str | None = None) -> Iterator[Connection]:
    """A connection inside a transaction that sees one moment; `exported` = that of another connection."""
    with psycopg.connect(url, autocommit=True, application_name="mosaic-audit") as connection:
        connection.execute("begin isolation level repeatable read read only")
        if exported is not None:
            connection.execute(psycopg.sql.SQL("set transaction snapshot {}").format(psycopg.sql.Literal(exported)))
        connection.execute("set local work_mem = '64MB'")
        connection.execute("set local idle_in_transaction_session_timeout = 0")
        connection.execute("set local jit = off")
        connection.execute("set local cursor_tuple_fraction = 1")
        try:
            yield connection
        finally:
            connection.execute("rollback")


def export_snapshot(connection: Connection) -> str:
    """The name under which other connections can see the same moment."""
    return str(_one(connection, "select pg_export_snapshot()")[0])


def _one(connection: Connection, sql: str, *params: Any) -> tuple[Any, ...]:
    row = connection.execute(sql.encode(), params).fetchone()
    assert row is not None
    return tuple(row)


def rows(connection: Connection, sql: str, *params: Any) -> list[dict[str, Any]]:
    """Rows as dicts."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(sql.encode(), params).fetchall()


def span(connection: Connection) -> tuple[int, int]:
    """The least and the greatest job number that a job or an event has; (0, 0) when there is none."""
    low, high = _one(
        connection,
        "select least((select min(id) from runner_jobs), (select min(job_id) from job_events)), "
        "greatest((select max(id) from runner_jobs), (select max(job_id) from job_events))",
    )
    return (int(low), int(high)) if low is not None else (0, 0)


def size(connection: Connection) -> int:
    """About how many events there are, by the statistics of the table."""
    return max(0, int(_one(connection, "select reltuples from pg_class where oid = 'job_events'::regclass")[0]))


def applied_at(connection: Connection, migration: str) -> Any:
    row = connection.execute("select at from schema_migrations where name = %s", (migration,)).fetchone()
    return row[0] if row else None


def now(connection: Connection) -> datetime:
    moment: datetime = _one(connection, "select clock_timestamp()")[0]
    return moment


def anchors(connection: Connection) -> Iterator[Anchor]:
    """All anchors in their order, as a stream."""
    with connection.cursor(name="anchors") as cursor:
        cursor.itersize = 200
        cursor.execute(b"select seq, hash, key, signature, body from audit_anchors order by seq")
        for row in cursor:
            yield Anchor(*row)


def count_until(connection: Connection, max_id: int, seen: str) -> int:
    """How many of the events that this snapshot, the newest anchor's, could see are there (app/ledger/anchors.py)."""
    sql = (
        "select count(*) from job_events where id <= %s and pg_visible_in_snapshot(xid, %s::pg_snapshot) and not "
        "(xid = '2' and (select high_xid from audit_anchors order by seq desc limit 1) = '3')"
    )
    return int(_one(connection, sql, max_id, seen)[0])


# ---------------------------------------------------------------- a range of jobs


def jobs(connection: Connection, low: int, high: int) -> list[dict[str, Any]]:
    """What the fold compares of each job in [low, high)."""
    return rows(
        connection,
        "select id, status, reason, requester, number, trigger ->> 'text_sha256' as text_sha256, fence, event_seq, "
        "event_hash, base_sha, gates, rules::text as rules, created_at from runner_jobs where id >= %s and id < %s",
        low,
        high,
    )


def steps(connection: Connection, low: int, high: int) -> list[tuple[Any, ...]]:
    """job, id, name, round, attempt, status, cleanup, order, fence, crashes, faults, reason, worker, commit, tree."""
    return connection.execute(
        b"select job_id, id, name, round, attempt, status, phase = 'cleanup', ord, fence, crashes, faults, reason, "
        b"worker_id, output ->> 'commit', output ->> 'tree' from job_steps where job_id >= %s and job_id < %s "
        b"order by job_id, ord, id",
        (low, high),
    ).fetchall()


def receipts(connection: Connection, low: int, high: int) -> list[tuple[Any, ...]]:
    """job, step key, passed, tree, exit code of each gate's receipt."""
    return connection.execute(
        b"select g.job_id, s.name || '@' || s.round || '.' || s.attempt, g.passed, g.tree_sha, g.exit_code "
        b"from gate_results g join job_steps s on s.id = g.step_id where g.job_id >= %s and g.job_id < %s",
        (low, high),
    ).fetchall()


def events(connection: Connection, low: int, high: int, since: datetime | None = None) -> Iterator[tuple[Any, ...]]:
    """job, seq, kind, moment, actor, step, body (bytes), prev, hash of the events of the jobs, in order."""
    after = "and at >= %s " if since else ""
    sql = (
        f"select job_id, seq, kind, {STAMP.format('at')}, actor, step, convert_to(data, 'UTF8'), prev, hash "
        f"from job_events where job_id >= %s and job_id < %s {after}order by job_id, seq"
    )
    with connection.cursor(name="events", binary=True) as cursor:
        cursor.execute(sql.encode(), (low, high, since) if since else (low, high))
        while rows := cursor.fetchmany(AT_ONCE):
            yield from rows


# ---------------------------------------------------------------- rows that break a rule by themselves

# invariant → statements; each yields the job (or null), a sentence, and nothing else when all is well.
STATEMENTS: tuple[tuple[str, str], ...] = (
    (
        "one_owner",
        "select job_id, name || '@' || round || '.' || attempt || ' is ' || status || ' with owner ' || "
        "coalesce(worker_id::text, 'nobody') || ' and lease ' || coalesce(lease_until::text, 'none') from job_steps "
        "where (status = 'running') <> (worker_id is not null) or (worker_id is null) <> (lease_until is null)",
    ),
    (
        "one_order",
        "select job_id, 'steps of the orders ' || string_agg(distinct ord::text, ', ') || ' run' from job_steps "
        "where status = 'running' group by job_id having count(distinct ord) > 1",
    ),
    (
        "one_branch",
        "select min(id), 'jobs ' || string_agg(id::text, ', ' order by id) || ' run on ' || branch from runner_jobs "
        "where status = 'running' and reason is null and branch is not null group by repository_id, branch "
        "having count(*) > 1",
    ),
    (
        "attempts",
        "select job_id, name || ' of round ' || round || ' has the attempts ' || "
        "string_agg(attempt || ' (' || status || ')', ', ' order by attempt) from job_steps "
        "group by job_id, name, round having min(attempt) <> 1 or max(attempt) <> count(*) "
        "or count(*) filter (where status in ('pending', 'running')) > 1 or max(attempt) > "
        "max(attempt) filter (where status in ('pending', 'running'))",
    ),
    (
        "terminal",
        "select j.id, s.name || '@' || s.round || '.' || s.attempt || ' is ' || s.status || ' in a job that is ' || "
        "j.status from runner_jobs j join job_steps s on s.job_id = j.id where j.finished_at is not null "
        "and s.status in ('pending', 'running')",
    ),
    (
        "terminal",
        "select id, 'it is ' || status || ' and ' || case when finished_at is null then 'has no end' else "
        "'has an end' end from runner_jobs "
        "where (status in ('completed', 'failed', 'cancelled')) <> (finished_at is not null)",
    ),
    (
        "effects",
        "select e.job_id, e.key || case e.state when 'done' then ' is done and has no external id' else "
        "' is planned, and its job has ended' end from effects e left join runner_jobs j on j.id = e.job_id "
        "where (e.state = 'done' and coalesce(e.external_id, '') = '') or (e.state = 'planned' "
        "and e.kind in ('push', 'pull_request') and j.finished_at is not null)",
    ),
    (
        "effects",
        "select job_id, key || ' is done at version ' || told || ' of ' || wanted from effects "
        "where state = 'done' and (told < wanted or done_at is null)",
    ),
    (
        "effects",
        "select e.job_id, e.key || ' wrote before any step of its job had been claimed' from effects e "
        "where e.kind in ('push', 'pull_request') and e.state = 'done' and not exists (select 1 from job_steps s "
        "where s.job_id = e.job_id and s.name = 'herald.publish' and s.fence > 0)",
    ),
    (
        "effect_once",
        "select b.job_id, b.key || ' and ' || a.key || ' are the same comment ' || a.external_id from effects a "
        "join effects b on b.kind like 'comment.%' and b.external_id = a.external_id and b.id > a.id "
        "and b.target ->> 'repository_id' = a.target ->> 'repository_id' "
        "left join runner_jobs j on j.id = b.job_id where a.kind like 'comment.%' "
        "and not (a.kind = b.kind and b.kind = 'comment.status' and j.retry_of is not null)",
    ),
    (
        "authority",
        "select e.job_id, e.key || ' was pushed for a request that no delivery brought' from effects e "
        "join runner_jobs j on j.id = e.job_id where e.kind = 'push' and e.state = 'done' and j.retry_of is null "
        "and j.trigger ->> 'kind' in ('comment', 'opened', 'assigned', 'labeled') "
        "and exists (select 1 from job_events v where v.job_id = j.id and v.kind = 'authz.checked') "
        "and not exists (select 1 from deliveries d where d.job_id = j.id)",
    ),
    (
        "authority",
        "select e.job_id, e.key || ' is done and no event says so' from effects e where e.kind = 'push' "
        "and e.state = 'done' and not exists (select 1 from job_events v where v.job_id = e.job_id "
        "and v.kind = 'git.pushed') and exists (select 1 from job_steps s where s.job_id = e.job_id "
        "and s.name = 'herald.publish' and s.status = 'completed')",
    ),
    (
        "last_words",
        "select j.id, 'it ended on issue ' || j.number || ' without a closing comment' from runner_jobs j "
        "join job_steps s on s.job_id = j.id and s.name = 'herald.report' and s.status = 'completed' "
        "and s.output ? 'said' where j.finished_at is not null and j.number is not null and not exists "
        "(select 1 from effects e where e.job_id = j.id and (e.kind = 'comment.closing' "
        "or e.key = 'job:' || j.id || ':declined'))",
    ),
)

UNIQUE = (
    "runner_jobs_branch",
    "runner_jobs_trigger_key_key",
    "job_steps_job_id_name_round_attempt_key",
    "job_events_job_id_seq_key",
    "deliveries_source_delivery_id_key",
    "deliveries_meaning",
    "effects_key_key",
    "gate_results_step_id_key",
    "users_one_self",
)
PARTIAL = {"runner_jobs_branch": "running", "deliveries_meaning": "dedup_key", "users_one_self": "is_self"}


def faults(connection: Connection) -> Iterator[tuple[str, int | None, str]]:
    """invariant, job, sentence of every row that breaks a rule by itself."""
    for invariant, statement in STATEMENTS:
        for job_id, sentence in connection.execute(statement.encode()):
            yield invariant, job_id, sentence


def unique_indexes(connection: Connection) -> dict[str, str]:
    """The unique indexes that are valid, with the condition of each ("" = all rows)."""
    found = connection.execute(
        "select c.relname, coalesce(pg_get_expr(i.indpred, i.indrelid), '') from pg_index i "
        "join pg_class c on c.oid = i.indexrelid where i.indisunique and i.indisvalid and i.indisready"
    )
    return dict(found.fetchall())


def triggers(connection: Connection) -> dict[tuple[str, str], tuple[str, int, str]]:
    """(table, trigger) → (enabled: O, D, R, A; its type bits; source of its function)."""
    found = connection.execute(
        "select tgrelid::regclass::text, tgname, tgenabled::text, tgtype::int, prosrc from pg_trigger "
        "join pg_proc p on p.oid = tgfoid where not tgisinternal"
    )
    return {(table, name): (enabled, bits, source) for table, name, enabled, bits, source in found}


# ---------------------------------------------------------------- what stands on the forge


def told(connection: Connection) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """repository id, issue, the comments that were told there (key, kind, job_id, delivery_id, external_id)."""
    found = rows(
        connection,
        "select key, kind, job_id, delivery_id, external_id, (target ->> 'repository_id')::bigint as repository_id, "
        "(target ->> 'number')::integer as number from effects where kind like 'comment.%%' and told > 0 "
        "and external_id is not null and target ->> 'number' is not null order by repository_id, number, id",
    )
    for place, effects in groupby(found, key=lambda row: (row["repository_id"], row["number"])):
        yield *place, list(effects)


def pulls(connection: Connection) -> list[dict[str, Any]]:
    """The newest job of each pull request that was opened: its branches, and what was pushed there."""
    return rows(
        connection,
        "select distinct on (j.repository_id, e.external_id) j.repository_id, j.id as job_id, j.branch, "
        "j.default_branch as base, e.external_id::integer as number, array(select p.result ->> 'sha' from effects p "
        "where p.kind = 'push' and p.target ->> 'branch' = j.branch and p.result ? 'sha' "
        "and (p.target ->> 'repository_id')::bigint = j.repository_id) as pushed "
        "from effects e join runner_jobs j on j.id = e.job_id where e.kind = 'pull_request' "
        "and e.external_id is not null order by j.repository_id, e.external_id, j.id desc",
    )
