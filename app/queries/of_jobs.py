"""Jobs: one, many, what was stored with them at admission, their place in the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.ledger.breaker import MAX_OUTAGE_HOURS
from app.ledger.turns import FREE_BRANCH, QUEUE, paused
from app.models import fetch, fetch_one
from app.queries.rows import as_job
from app.types import GateSpec, Job


def job(job_id: int) -> Job | None:
    row = fetch_one("select * from runner_jobs where id = %s", job_id)
    return as_job(row) if row else None


def rules(job_id: int) -> Mapping[str, Any] | None:
    """The effective rules stored with the job at admission (JSON)."""
    row = fetch_one("select rules from runner_jobs where id = %s", job_id)
    return row["rules"] if row else None


def gates(job_id: int) -> tuple[GateSpec, ...]:
    """The effective gates stored with the job at admission."""
    row = fetch_one("select gates from runner_jobs where id = %s", job_id)
    return tuple(GateSpec(**gate) for gate in row["gates"]) if row else ()


def authority(job_id: int) -> Mapping[str, Any]:
    row = fetch_one("select authority from runner_jobs where id = %s", job_id)
    return (row and row["authority"]) or {}


def asked_by_bot(job_id: int) -> bool:
    """Whether no person asked for this job, as its admission found: when it was admitted, and when it was not."""
    return (
        fetch_one(
            "select 1 as yes from runner_jobs j where j.id = %s and ((j.authority ->> 'bot')::boolean or exists ("
            "select 1 from job_steps s where s.job_id = j.id and s.name = 'runner.admit' "
            "and (s.output ->> 'bot')::boolean))",
            job_id,
        )
        is not None
    )


def snapshot(job_id: int) -> Mapping[str, Any] | None:
    row = fetch_one("select body from context_snapshots where job_id = %s", job_id)
    return row["body"] if row else None


def snapshot_sha256(job_id: int) -> str | None:
    row = fetch_one("select sha256 from context_snapshots where job_id = %s", job_id)
    return str(row["sha256"]) if row else None


def jobs(*, repository: str | None = None, status: Sequence[str] = (), limit: int = 50) -> tuple[Job, ...]:
    """Newest jobs first, filtered."""
    rows = fetch(
        "select * from runner_jobs where (%s::text is null or lower(repository) = lower(%s::text)) "
        "and (cardinality(%s::text[]) = 0 or status = any(%s::text[])) order by id desc limit %s",
        repository,
        repository,
        list(status),
        list(status),
        limit,
    )
    return tuple(map(as_job, rows))


def issue_jobs(repository_id: int, number: int, *, open_only: bool = False, limit: int = 20) -> tuple[Job, ...]:
    """Jobs of an issue or pull request (by its own number or by the pull request they opened), newest first."""
    rows = fetch(
        "select * from runner_jobs where repository_id = %s and (number = %s or pull_request = %s) "
        "and (not %s or finished_at is null) order by id desc limit %s",
        repository_id,
        number,
        number,
        open_only,
        limit,
    )
    return tuple(map(as_job, rows))


def queue_position(job_id: int) -> int | None:
    """The job's place among those of its repository: 1 = next; None when the job does not wait."""
    row = fetch_one(
        f"select place from ({QUEUE}) q where q.id = %s and q.repository_id = "
        "(select repository_id from runner_jobs where id = %s)",
        job_id,
        job_id,
    )
    return int(row["place"]) if row else None


def queued_jobs(limit: int = 100) -> tuple[Job, ...]:
    """Jobs that wait for a slot, the next ones of each repository first."""
    rows = fetch(
        f"select j.* from ({QUEUE}) q join runner_jobs j on j.id = q.id order by q.place, q.id limit %s", limit
    )
    return tuple(map(as_job, rows))


def job_counts() -> Mapping[str, int]:
    """How many jobs are in each open status."""
    rows = fetch("select status, count(*) as n from runner_jobs where finished_at is null group by status")
    return {row["status"]: int(row["n"]) for row in rows}


def anything_open() -> bool:
    """Whether any job, effect or command has not come to its end."""
    row = fetch_one(
        "select exists (select 1 from runner_jobs where finished_at is null) or exists (select 1 from effects "
        "where state = 'planned') or exists (select 1 from effects where state = 'done' and settle_at is not null) "
        "or exists (select 1 from deliveries where state = 'command') "
        "or exists (select 1 from circuit_breakers where state <> 'closed') as yes"
    )
    return row is None or bool(row["yes"])


def jobs_to_advance() -> list[int]:
    """Open jobs where something may be due: nothing runs and nothing is ready, or the deadline has passed.

    Of the jobs that wait for a slot, only the next one of each repository that could start.
    """
    idle = (
        "not exists (select 1 from job_steps s where s.job_id = j.id and (s.status = 'running' "
        "or (s.status = 'pending' and s.ready_at is not null)))"
    )
    return [
        row["id"]
        for row in fetch(
            f"(select j.id from runner_jobs j where j.status in ('pending', 'running') and {idle} limit 500) union "
            "(select j.id from runner_jobs j where j.finished_at is null and j.reason is null "
            "  and ((j.deadline_at < clock_timestamp() and j.forge_wait_since is null) "
            "  or j.cancel_requested_at is not null) limit 500) union "
            "(select j.id from runner_jobs j where j.finished_at is null and j.reason is null "
            f"  and j.forge_wait_since < clock_timestamp() - interval '{MAX_OUTAGE_HOURS} hours' limit 500) union "
            f"(select distinct on (q.repository_id) q.id from ({QUEUE}) q where {FREE_BRANCH} "
            f"  and not {paused('q.repository_id')} order by q.repository_id, q.place)"
        )
    ]


def spent_today(repository_id: int | None = None) -> float:
    """US dollars that the jobs of a repository, or of the whole server, cost within the last 24 hours."""
    row = fetch_one(
        "select coalesce(sum(cost_usd), 0) as usd from runner_jobs "
        "where created_at > clock_timestamp() - interval '24 hours' "
        "and (%s::bigint is null or repository_id = %s::bigint)",
        repository_id,
        repository_id,
    )
    return float(row["usd"]) if row else 0.0


def recently_asked(person_id: int, hours: float = 1.0) -> tuple[int, int]:
    """How many jobs a person has started within the last hours (the per-user limit), and how many commands given."""
    row = fetch_one(
        "select (select count(*) from runner_jobs where requester_id = %s and created_at > clock_timestamp() - "
        "%s * interval '1 hour') as jobs, (select count(*) from deliveries where state in ('command', 'answered') "
        "and (trigger ->> 'actor_id')::bigint = %s and received_at > clock_timestamp() - %s * interval '1 hour') "
        "as commands",
        person_id,
        hours,
        person_id,
        hours,
    )
    assert row is not None
    return int(row["jobs"]), int(row["commands"])
