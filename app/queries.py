"""Every read. Rows become frozen values here; no row of a job or a step leaves as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.ledger.chain import redact
from app.ledger.workers import alive
from app.models import fetch, fetch_one
from app.types import Event, GateResult, GateSpec, Job, JobStatus, Phase, Step, StepStatus, StepType, Trigger

OPEN = ("pending", "queued", "running", "waiting")


def job(job_id: int) -> Job | None:
    row = fetch_one("select * from runner_jobs where id = %s", job_id)
    return as_job(row) if row else None


def as_job(row: Mapping[str, Any]) -> Job:
    return Job(
        id=row["id"],
        pipeline=row["pipeline"],
        status=JobStatus(row["status"]),
        repository_id=row["repository_id"],
        repository=row["repository"],
        number=row["number"],
        instructions=row["instructions"],
        requester=row["requester"],
        requester_id=row["requester_id"],
        trigger=Trigger(**row["trigger"]),
        priority=row["priority"],
        access=row["access"],
        reason=row["reason"],
        detail=row["detail"],
        retry_of=row["retry_of"],
        branch=row["branch"],
        base_sha=row["base_sha"],
        default_branch=row["default_branch"],
        pull_request=row["pull_request"],
        head_sha=row["head_sha"],
        cancel_requested=row["cancel_requested_at"] is not None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        deadline_at=row["deadline_at"],
        tokens=row["tokens"],
        cost_usd=row["cost_usd"],
        metadata=row["metadata"],
    )


def as_step(row: Mapping[str, Any]) -> Step:
    return Step(
        id=row["id"],
        job_id=row["job_id"],
        name=row["name"],
        round=row["round"],
        attempt=row["attempt"],
        status=StepStatus(row["status"]),
        phase=Phase(row["phase"]),
        type=StepType(row["type"]),
        order=row["ord"],
        fence=row["fence"],
        crashes=row["crashes"],
        faults=row["faults"],
        run_after=row["run_after"],
        output=row["output"],
        reason=row["reason"],
        detail=row["detail"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        host=row["host"],
    )


def steps(job_id: int) -> tuple[Step, ...]:
    """All steps of a job: plan order, then round and attempt."""
    return tuple(map(as_step, step_rows(job_id)))


def step_rows(job_id: int) -> list[dict[str, Any]]:
    return fetch("select * from job_steps where job_id = %s order by ord, name, round, attempt", job_id)


def step(step_id: int) -> Step | None:
    row = fetch_one("select * from job_steps where id = %s", step_id)
    return as_step(row) if row else None


def progress(job_id: int) -> Mapping[str, Any] | None:
    """What the running agent step of a job reported last."""
    row = fetch_one(
        "select progress from job_steps where job_id = %s and status = 'running' "
        "and progress is not null order by id desc limit 1",
        job_id,
    )
    return row["progress"] if row else None


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


def gate_results(job_id: int, round: int | None = None) -> tuple[GateResult, ...]:
    """Receipts of a job; of its newest round unless one is named."""
    rows = fetch(
        "select * from gate_results where job_id = %s and round = coalesce(%s, "
        "(select max(round) from gate_results where job_id = %s)) order by id",
        job_id,
        round,
        job_id,
    )
    return tuple(map(_gate_result, rows))


def all_gate_results(job_id: int) -> tuple[tuple[int, GateResult], ...]:
    """(round, receipt) of every gate run of a job, oldest first."""
    rows = fetch("select * from gate_results where job_id = %s order by id", job_id)
    return tuple((row["round"], _gate_result(row)) for row in rows)


def _gate_result(row: Mapping[str, Any]) -> GateResult:
    return GateResult(
        name=row["name"],
        type=row["type"],
        command=row["command"],
        required=row["required"],
        passed=row["passed"],
        exit_code=row["exit_code"],
        seconds=row["seconds"],
        why=row["why"],
        output=row["output"],
        counts=row["counts"],
        coverage=row["coverage"],
        tree_sha=row["tree_sha"],
        timed_out=row["timed_out"],
    )


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


def server_gates(repository: str) -> tuple[GateSpec, ...]:
    rows = fetch("select * from quality_gates where enabled and scope in ('*', %s) order by id", repository)
    return tuple(
        GateSpec(
            name=row["name"],
            type=row["type"],
            command=row["command"],
            required=row["required"],
            order=row["ord"],
            timeout=row["timeout"],
            expect=row["expect"],
            min=row["min"],
            report=row["report"],
            source="server",
        )
        for row in rows
    )


def events(job_id: int, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
    rows = fetch("select * from job_events where job_id = %s and seq > %s order by seq limit %s", job_id, after, limit)
    return tuple(map(as_event, rows))


def as_event(row: Mapping[str, Any]) -> Event:
    return Event(
        id=f"{row['job_id']}-{row['seq']}",
        job_id=row["job_id"],
        seq=row["seq"],
        kind=row["kind"],
        at=row["at"],
        actor=row["actor"],
        step=row["step"],
        data=json.loads(row["data"]),
    )


def event_rows(job_id: int) -> list[dict[str, Any]]:
    return fetch("select * from job_events where job_id = %s order by seq", job_id)


def log(step_id: int, limit: int = 200_000) -> str:
    """The newest output of a step, at most `limit` characters."""
    rows = fetch("select text from step_logs where step_id = %s order by id desc limit 2000", step_id)
    return "".join(row["text"] for row in reversed(rows))[-limit:]


def snapshot(job_id: int) -> Mapping[str, Any] | None:
    row = fetch_one("select body from context_snapshots where job_id = %s", job_id)
    return row["body"] if row else None


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
        "select count(*) filter (where o.priority > j.priority or (o.priority = j.priority and o.id <= j.id)) "
        "as position, max(j.status) as status from runner_jobs j join runner_jobs o on o.status = 'queued' "
        "and o.repository_id = j.repository_id where j.id = %s and j.status = 'queued' group by j.id",
        job_id,
    )
    return int(row["position"]) if row else None


def self_id() -> int | None:
    """The numeric id of the bot's own account, once a control process has learned it."""
    row = fetch_one("select id from users where is_self")
    return int(row["id"]) if row else None


def self_login() -> str | None:
    row = fetch_one("select login from users where is_self")
    return str(row["login"]) if row else None


def trigger_label(repository_id: int) -> str:
    row = fetch_one("select trigger_label from repositories where id = %s", repository_id)
    return str(row["trigger_label"]) if row else "mosaic"


def effect(key: str) -> dict[str, Any] | None:
    return fetch_one("select * from effects where key = %s", key)


def effects(job_id: int) -> list[dict[str, Any]]:
    return fetch("select * from effects where job_id = %s order by id", job_id)


def effect_by_id(effect_id: int) -> dict[str, Any] | None:
    return fetch_one("select * from effects where id = %s", effect_id)


def pushed_shas(repository_id: int, branch: str) -> frozenset[str]:
    """Commits that Mosaic itself pushed to a branch."""
    rows = fetch(
        "select result ->> 'sha' as sha from effects where kind = 'push' and target ->> 'branch' = %s "
        "and (target ->> 'repository_id')::bigint = %s and result ? 'sha'",
        branch,
        repository_id,
    )
    return frozenset(row["sha"] for row in rows)


def delivery(delivery_id: int) -> dict[str, Any] | None:
    return fetch_one("select * from deliveries where id = %s", delivery_id)


def recent_requests(requester_id: int, hours: float = 1.0) -> int:
    """How many jobs a person has started within the last hours (the per-user limit)."""
    row = fetch_one(
        "select count(*) as n from runner_jobs where requester_id = %s "
        "and created_at > clock_timestamp() - %s * interval '1 hour'",
        requester_id,
        hours,
    )
    return int(row["n"]) if row else 0


def recent_commands(actor_id: int, hours: float = 1.0) -> int:
    """How many deliveries with control commands of a person were accepted within the last hours."""
    row = fetch_one(
        "select count(*) as n from deliveries where state in ('command', 'answered') "
        "and (trigger ->> 'actor_id')::bigint = %s and received_at > clock_timestamp() - %s * interval '1 hour'",
        actor_id,
        hours,
    )
    return int(row["n"]) if row else 0


# ---------------------------------------------------------------- what the sweep looks for


def lost_steps() -> list[int]:
    """Running steps whose owner is gone (its session lock is free) or let the lease lapse."""
    return [
        row["id"]
        for row in fetch(
            "select s.id from job_steps s where s.status = 'running' and (s.lease_until < clock_timestamp() "
            f"or not {alive('s.worker_id')}) order by s.id"
        )
    ]


def jobs_to_advance() -> list[int]:
    """Open jobs where something may be due: nothing runs and nothing is ready, or the deadline has passed.

    Of the jobs that wait for a slot, only the next one of each repository.
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
            "  and (j.deadline_at < clock_timestamp() or j.cancel_requested_at is not null) limit 500) union "
            "(select distinct on (repository_id) id from runner_jobs where status = 'queued' and reason is null "
            "  order by repository_id, priority desc, id)"
        )
    ]


def workers_alive(pool: str) -> int:
    """Slots of the live workers of a pool."""
    row = fetch_one(
        "select coalesce(sum(slots), 0) as n from workers where pool = %s and ended_at is null and not draining", pool
    )
    return int(row["n"]) if row else 0


def show(value: Any) -> Any:
    """A value as it may be shown: redacted by the secrets this process knows."""
    return redact(value)


# ---------------------------------------------------------------- what the pages ask


def now() -> datetime:
    """The database's clock, by which all moments are stored."""
    row = fetch_one("select clock_timestamp() as now")
    assert row is not None
    moment: datetime = row["now"]
    return moment


def job_counts() -> Mapping[str, int]:
    """How many jobs are in each open status."""
    rows = fetch("select status, count(*) as n from runner_jobs where finished_at is null group by status")
    return {row["status"]: int(row["n"]) for row in rows}


def queued_jobs(limit: int = 100) -> tuple[Job, ...]:
    """Jobs that wait for a slot, the next one first."""
    return tuple(
        map(
            as_job,
            fetch("select * from runner_jobs where status = 'queued' order by priority desc, id limit %s", limit),
        )
    )


def steps_of(job_ids: Sequence[int]) -> Mapping[int, tuple[Step, ...]]:
    """The steps of several jobs, each in the order of `steps`."""
    found: dict[int, list[Step]] = {job_id: [] for job_id in job_ids}
    for row in fetch(
        "select * from job_steps where job_id = any(%s) order by ord, name, round, attempt", list(job_ids)
    ):
        found[row["job_id"]].append(as_step(row))
    return {job_id: tuple(rows) for job_id, rows in found.items()}


def logged_steps(job_id: int) -> frozenset[int]:
    """Ids of the steps that have written output."""
    return frozenset(
        row["id"]
        for row in fetch(
            "select s.id from job_steps s where s.job_id = %s "
            "and exists (select 1 from step_logs l where l.step_id = s.id)",
            job_id,
        )
    )


def chain_head(job_id: int) -> tuple[int, str]:
    """(seq, hash) of a job's newest event; (0, "") when there is none."""
    row = fetch_one("select event_seq, event_hash from runner_jobs where id = %s", job_id)
    return (int(row["event_seq"]), str(row["event_hash"])) if row else (0, "")


def snapshot_sha256(job_id: int) -> str | None:
    row = fetch_one("select sha256 from context_snapshots where job_id = %s", job_id)
    return str(row["sha256"]) if row else None


def applied_migrations() -> frozenset[str]:
    """Names of the migrations that this database has; empty before the first one."""
    row = fetch_one("select to_regclass('schema_migrations') is not null as there")
    if not row or not row["there"]:
        return frozenset()
    return frozenset(row["name"] for row in fetch("select name from schema_migrations"))


def live_workers() -> Mapping[str, int]:
    """Consumers of each pool that take work and hold their session lock right now, whether or not a sweep ran."""
    rows = fetch(
        f"select w.pool, count(*) as n from workers w where w.ended_at is null and not w.draining "
        f"and {alive('w.id')} group by w.pool"
    )
    return {row["pool"]: int(row["n"]) for row in rows}
