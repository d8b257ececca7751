"""What an operator measures: how much waits and how long, what came of what, how old the oldest transaction is.

Totals are counted from the rows themselves, so that every process and every restart says the same. Rows below a mark
never change again (their job ended ten minutes ago): callers count them once and pass the mark on.
"""

from __future__ import annotations

from typing import Any

from app.models import fetch, fetch_one

HOP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SETTLED = "interval '10 minutes'"  # longer than a transaction may be open: no lower id appears after that


def waiting_steps() -> list[dict[str, Any]]:
    """Of each pool: steps whose turn has come, seconds that the oldest of them waits, steps that run."""
    return fetch(
        "select pool, count(*) filter (where status = 'pending') as depth, coalesce(extract(epoch from "
        "clock_timestamp() - min(greatest(ready_at, run_after)) filter (where status = 'pending')), 0)::float8 as age, "
        "count(*) filter (where status = 'running') as running from job_steps where (status = 'pending' and ready_at "
        "is not null and (run_after is null or run_after <= clock_timestamp())) or status = 'running' group by pool"
    )


def job_mark(known: int) -> int:
    """The highest job id up to which every job has ended for good; `known` is an earlier answer."""
    row = fetch_one(
        "select coalesce(min(id) filter (where finished_at is null or finished_at > clock_timestamp() - "
        f"{_SETTLED}) - 1, max(id), %s) as mark from runner_jobs where id > %s",
        known,
        known,
    )
    return int(row["mark"]) if row else known


def delivery_mark(known: int) -> int:
    row = fetch_one(
        "select coalesce(min(id) filter (where state = 'command' or received_at > clock_timestamp() - "
        f"{_SETTLED}) - 1, max(id), %s) as mark from deliveries where id > %s",
        known,
        known,
    )
    return int(row["mark"]) if row else known


def ended_jobs(after: int, upto: int | None) -> list[dict[str, Any]]:
    """Of jobs with after < id <= upto (None: all above), by status and reason: how many, their tokens and US dollars.

    Open jobs count with status `open`, for what they have used so far.
    """
    return fetch(
        "select case when finished_at is null then 'open' else status end as status, "
        "case when finished_at is null then '' else coalesce(reason, '') end as reason, count(*) as jobs, "
        "sum(tokens)::bigint as tokens, sum(cost_usd) as usd from runner_jobs where id > %s "
        "and (%s::bigint is null or id <= %s) group by 1, 2",
        after,
        upto,
        upto,
    )


def ended_steps(after: int, upto: int | None) -> list[dict[str, Any]]:
    """Of steps that ended, of jobs as above: by name (gates without their own) and result, and their hop times."""
    hop = "greatest(0, extract(epoch from started_at - greatest(ready_at, run_after)))"
    buckets = ", ".join(
        f"count(*) filter (where {hop} <= {limit}) as b{number}" for number, limit in enumerate(HOP_BUCKETS)
    )
    return fetch(
        "select case when name like 'inspector.gate.%%' then 'inspector.gate' else name end as step, pool, "
        f"status as result, count(*) as steps, count({hop}) as hops, coalesce(sum({hop}), 0)::float8 as seconds, "
        f"{buckets} from job_steps where status not in ('pending', 'running') and job_id > %s "
        "and (%s::bigint is null or job_id <= %s) group by 1, 2, 3",
        after,
        upto,
        upto,
    )


def received(after: int, upto: int | None) -> list[dict[str, Any]]:
    """Deliveries by what became of them."""
    return fetch(
        "select state, count(*) as n from deliveries where id > %s and (%s::bigint is null or id <= %s) group by state",
        after,
        upto,
        upto,
    )


def written_effects() -> list[dict[str, Any]]:
    """Of each kind and state: effects, and how many versions of them were written to the outside."""
    return fetch(
        "select kind, state, count(*) as n, sum(told)::bigint as written, coalesce(extract(epoch from "
        "clock_timestamp() - min(created_at) filter (where state = 'planned' and told = 0)), 0)::float8 as age "
        "from effects group by kind, state"
    )


def transactions() -> float:
    """Seconds that the oldest transaction of this database is open: an old one keeps dead rows alive."""
    row = fetch_one(
        "select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float8 as age "
        "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    return max(0.0, float(row["age"])) if row else 0.0


def database_size() -> int:
    row = fetch_one("select pg_database_size(current_database()) as bytes")
    return int(row["bytes"]) if row else 0


def writable() -> bool:
    """Whether the database takes changes: no standby, not switched to reading only."""
    row = fetch_one(
        "select not pg_is_in_recovery() and current_setting('default_transaction_read_only') = 'off' as yes"
    )
    return bool(row and row["yes"])


def last_delivery() -> dict[str, Any] | None:
    """When the newest webhook came, and how long ago in seconds; None when none ever came."""
    return fetch_one(
        "select received_at, extract(epoch from clock_timestamp() - received_at)::float8 as ago from deliveries "
        "order by id desc limit 1"
    )


def breakers() -> list[dict[str, Any]]:
    """The circuit breakers: service, state (closed, open, half_open), why, since when in seconds."""
    return fetch(
        "select service, state, code, detail, "
        "coalesce(extract(epoch from clock_timestamp() - since), 0)::float8 as age from circuit_breakers order by 1"
    )


def reconcile_lag() -> float | None:
    """Seconds since a whole round of looking for lost mentions ended; None before the first."""
    row = fetch_one(
        "select extract(epoch from clock_timestamp() - completed_at)::float8 as lag from reconciler "
        "where completed_at is not null"
    )
    return float(row["lag"]) if row else None


def dead_effects() -> int:
    """Writes to the outside that were given up and wait for an operator."""
    row = fetch_one("select count(*) as n from effects where state = 'failed' and dropped_at is null")
    return int(row["n"]) if row else 0


# ---------------------------------------------------------------- what may be thrown away


def over(job_ids: list[int]) -> frozenset[int]:
    """Which of these jobs ended at least ten minutes ago: nothing of theirs runs any more, on any host."""
    rows = fetch(
        "select id from runner_jobs j where id = any(%s) and finished_at < clock_timestamp() - "
        f"{_SETTLED} and not exists (select 1 from job_steps s where s.job_id = j.id and s.status = 'running')",
        job_ids,
    )
    return frozenset(row["id"] for row in rows)


def forgotten(job_ids: list[int], days: int) -> frozenset[int]:
    """Which of these jobs ended so many days ago, and none that is open goes on from them."""
    rows = fetch(
        "select id from runner_jobs j where id = any(%s) and finished_at < clock_timestamp() - %s * interval '1 day' "
        "and not exists (select 1 from runner_jobs o where o.retry_of = j.id and o.finished_at is null)",
        job_ids,
        days,
    )
    return frozenset(row["id"] for row in rows)


def repositories_in_use(days: int) -> frozenset[int]:
    """Repositories with an open job, or with one that ended within the last so many days."""
    rows = fetch(
        "select distinct repository_id as id from runner_jobs where finished_at is null "
        "or finished_at >= clock_timestamp() - %s * interval '1 day'",
        days,
    )
    return frozenset(row["id"] for row in rows)


def caches_in_use() -> frozenset[str]:
    """Keys of the setup caches that open jobs found or made."""
    rows = fetch(
        "select distinct s.output ->> 'cache' as key from job_steps s join runner_jobs j on j.id = s.job_id "
        "where j.finished_at is null and s.name = 'runner.setup' and s.output ->> 'cache' is not null"
    )
    return frozenset(row["key"] for row in rows)


def conversations(days: int, limit: int = 2000) -> dict[int, tuple[str, ...]]:
    """Of jobs that ended in the last so many days, but ten minutes ago: worktree fences and the agent's sessions."""
    rows = fetch(
        "select j.id, array_agg(distinct coalesce(s.output ->> 'session', s.output ->> 'fence')) as names "
        "from runner_jobs j join job_steps s on s.job_id = j.id where j.finished_at < clock_timestamp() - "
        f"{_SETTLED} and j.finished_at > clock_timestamp() - %s * interval '1 day' "
        "and ((s.name = 'weaver.implement' and s.output ? 'session') or (s.name = 'runner.checkout' and "
        "s.output ? 'fence')) group by j.id order by j.id desc limit %s",
        days,
        limit,
    )
    return {row["id"]: tuple(row["names"]) for row in rows}


def old_output(days: int) -> dict[str, int]:
    """Rows and bytes of step output of jobs that ended so many days ago."""
    row = fetch_one(
        "select count(*) as n, coalesce(sum(octet_length(l.text)), 0)::bigint as bytes from step_logs l "
        "join job_steps s on s.id = l.step_id join runner_jobs j on j.id = s.job_id "
        "where j.finished_at < clock_timestamp() - %s * interval '1 day'",
        days,
    )
    return dict(row) if row else {"n": 0, "bytes": 0}


def old_bodies(days: int) -> dict[str, int]:
    """Rows and bytes of bodies of webhooks that were dealt with so many days ago."""
    row = fetch_one(
        "select count(*) as n, coalesce(sum(octet_length(body)), 0)::bigint as bytes from deliveries "
        "where body is not null and state <> 'command' and received_at < clock_timestamp() - %s * interval '1 day'",
        days,
    )
    return dict(row) if row else {"n": 0, "bytes": 0}
