"""Steps of a job, their output, their gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.ledger.workers import GONE
from app.models import fetch, fetch_one
from app.queries.rows import as_gate_result, as_step
from app.types import GateResult, GateSpec, Step


def steps(job_id: int) -> tuple[Step, ...]:
    """All steps of a job: plan order, then round and attempt."""
    return tuple(map(as_step, step_rows(job_id)))


def step_rows(job_id: int) -> list[dict[str, Any]]:
    """As `steps`, in the order of the plan, as they stand there."""
    return fetch("select * from job_steps where job_id = %s order by ord, name, round, attempt", job_id)


def step(step_id: int) -> Step | None:
    row = fetch_one("select * from job_steps where id = %s", step_id)
    return as_step(row) if row else None


def steps_of(job_ids: Sequence[int]) -> Mapping[int, tuple[Step, ...]]:
    """The steps of several jobs, each in the order of `steps`."""
    found: dict[int, list[Step]] = {job_id: [] for job_id in job_ids}
    for row in fetch(
        "select * from job_steps where job_id = any(%s) order by ord, name, round, attempt", list(job_ids)
    ):
        found[row["job_id"]].append(as_step(row))
    return {job_id: tuple(rows) for job_id, rows in found.items()}


def progress(job_id: int) -> Mapping[str, Any] | None:
    """What the running agent step of a job reported last."""
    row = fetch_one(
        "select progress from job_steps where job_id = %s and status = 'running' "
        "and progress is not null order by id desc limit 1",
        job_id,
    )
    return row["progress"] if row else None


def log(step_id: int, limit: int = 200_000) -> str:
    """The newest output of a step, at most `limit` characters."""
    rows = fetch("select text from step_logs where step_id = %s order by id desc limit 2000", step_id)
    return "".join(row["text"] for row in reversed(rows))[-limit:]


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


def gate_results(job_id: int, round: int | None = None) -> tuple[GateResult, ...]:
    """Receipts of a job, the last one of each gate; of its newest round unless one is named."""
    rows = fetch(
        "select * from (select distinct on (name) * from gate_results where job_id = %s and round = coalesce(%s, "
        "(select max(round) from gate_results where job_id = %s)) order by name, id desc) r order by id",
        job_id,
        round,
        job_id,
    )
    return tuple(map(as_gate_result, rows))


def all_gate_results(job_id: int) -> tuple[tuple[int, GateResult], ...]:
    """(round, receipt) of every gate run of a job, oldest first."""
    rows = fetch("select * from gate_results where job_id = %s order by id", job_id)
    return tuple((row["round"], as_gate_result(row)) for row in rows)


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


def lost_steps() -> list[int]:
    """Running steps whose owner is gone (its session lock is free, and it is not about to take it again) or let the
    lease lapse.
    """
    return [
        row["id"]
        for row in fetch(
            "select s.id from job_steps s join workers w on w.id = s.worker_id where s.status = 'running' "
            f"and (s.lease_until < clock_timestamp() or ({GONE})) order by s.id"
        )
    ]
