"""Steps: laid out, claimed with a lease and a fence, finished, handed back, given up, skipped.

A running step has an owner, a lease on the database's clock and a fence; a result is accepted only with that fence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from psycopg.types.json import Jsonb

from app.ledger import budgets, chain
from app.ledger.chain import Entry, entry, entry_of_step
from app.models import ask, db, execute, fetch, fetch_one, send
from app.pipeline import ANYWHERE, StepSpec
from app.types import CLOCK_STOPS, GateResult, LostLease, Phase, StepStatus, Usage

LEASE_SECONDS = 30
MAX_CRASHES = 3


def key_of(step: Mapping[str, Any]) -> str:
    return f"{step['name']}@{step['round']}.{step['attempt']}"


def lay(
    entry: Entry, specs: Iterable[StepSpec], *, round: int, attempt: int = 1, excused: int = 0, pause: float = 0.0
) -> None:
    """Add pending steps to a job's plan; those that are there stay as they are.

    `excused` = how many of the attempts before do not count against the limit; `pause` = seconds until they may run.
    """
    rows = [(row.name, row.phase.value, row.type.value, row.pool.value, row.order) for row in specs]
    if rows:
        names, phases, types, pools, orders = map(list, zip(*rows, strict=True))
        send(
            "insert into job_steps (job_id, name, round, attempt, phase, type, pool, ord, excused, run_after) "
            "select %s, u.name, %s, %s, u.phase, u.type, u.pool, u.ord, %s, %s::timestamptz "
            "from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::int[]) "
            "as u (name, phase, type, pool, ord) "
            "on conflict (job_id, name, round, attempt) do nothing",
            entry.id,
            round,
            attempt,
            excused,
            entry.now + timedelta(seconds=pause) if pause else None,
            names,
            phases,
            types,
            pools,
            orders,
        )


def ready(entry: Entry, step_ids: Iterable[int]) -> None:
    """Say that the turn of these steps has come: the dispatcher may ring for them."""
    send(
        "update job_steps set ready_at = clock_timestamp() where id = any(%s) and status = 'pending' "
        "and ready_at is null",
        list(step_ids),
    )


def claim(step_id: int, worker_id: int, host: str) -> dict[str, Any] | None:
    """Take a ready step: its row with a new fence, or None when it is not to be had (taken, cancelled, too early).

    The first step of a job that needs files binds the job to this host; such a step of another host's job is refused.
    """
    with entry_of_step(step_id) as (job, step):
        stopping = job["cancel_requested_at"] is not None or job["reason"] is not None
        if step["status"] != "pending" or job["finished_at"] or (stopping and step["phase"] != Phase.CLEANUP):
            return None
        if step["ready_at"] is None or (step["run_after"] is not None and step["run_after"] > job.now):
            return None
        if not _belongs(job, step["name"], host):
            # The bell that was heard here may ring elsewhere at once.
            send("update job_steps set rung_at = null where id = %s and status = 'pending'", step_id)
            return None
        return _take(job, step, worker_id, host)


def take_next(job: Entry, step: Mapping[str, Any], worker_id: int, host: str) -> dict[str, Any] | None:
    """Claim a step whose turn comes in this very transaction, for the worker that is here anyway; no bell rings.

    None when it has to wait (another host's, handed back, or its worker was lost before): then it is made ready.
    `step` is its row as read under the job's lock.
    """
    fresh = step["ready_at"] is None and step["run_after"] is None and step["crashes"] == 0
    return _take(job, step, worker_id, host) if fresh and _belongs(job, step["name"], host) else None


def _take(job: Entry, step: Mapping[str, Any], worker_id: int, host: str) -> dict[str, Any]:
    """The row as it is from now on. Nobody else can have taken it: that needs the job's lock, which is ours."""
    taken = {
        "status": "running",
        "worker_id": worker_id,
        "host": host,
        "fence": job.next_fence(),
        "progress": None,
        "lease_until": job.now + timedelta(seconds=LEASE_SECONDS),
        "started_at": job.now,
        "ready_at": step["ready_at"] or job.now,
    }
    send(
        f"update job_steps set {', '.join(f'{column} = %s' for column in taken)} "
        "where id = %s and status = 'pending'",
        *taken.values(),
        step["id"],
    )
    row = {**step, **taken}
    if job["host"] is None and step["name"] not in ANYWHERE:
        job.set(host=host)
    job.event("step.started", actor="system:worker", step=key_of(row), fence=row["fence"], worker=worker_id)
    return row


def _belongs(job: Entry, name: str, host: str) -> bool:
    """Whether a step may run on this host."""
    return name in ANYWHERE or job["host"] in (None, host)


_HELD = "s.id, s.fence, s.phase <> 'cleanup' and (j.cancel_requested_at is not null or j.reason is not null) as stop"


def renew(worker_id: int, step_ids: Iterable[int]) -> list[dict[str, Any]]:
    """Extend the leases of those of these steps that the worker still owns; which they are, and whether to stop.

    A step whose thread has ended without a result is not among them: its lease lapses and the step is taken back.
    """
    return fetch(
        f"update job_steps s set lease_until = clock_timestamp() + interval '{LEASE_SECONDS} seconds' "
        "from runner_jobs j where s.worker_id = %s and s.id = any(%s) and s.status = 'running' and j.id = s.job_id "
        f"returning {_HELD}",
        worker_id,
        list(step_ids),
    )


def running(worker_id: int) -> list[dict[str, Any]]:
    """What this worker owns, as `renew` reports it, without renewing anything."""
    return fetch(
        f"select {_HELD} from job_steps s join runner_jobs j on j.id = s.job_id "
        "where s.worker_id = %s and s.status = 'running'",
        worker_id,
    )


def owned(step_id: int, fence: int) -> bool:
    """Whether this fence still owns the step: asked right before every write to the outside."""
    return (
        fetch_one(
            "select 1 as yes from job_steps where id = %s and fence = %s and status = 'running' "
            "and lease_until > clock_timestamp()",
            step_id,
            fence,
        )
        is not None
    )


def holds(worker_id: int, step: Mapping[str, Any]) -> bool:
    """Whether the step is running in the hands of this worker, under this fence."""
    return any((row["id"], row["fence"]) == (step["id"], step["fence"]) for row in running(worker_id))


def finish(
    entry: Entry,
    step: Mapping[str, Any],
    status: StepStatus,
    *,
    output: Mapping[str, Any],
    reason: str = "",
    detail: str = "",
) -> None:
    """Close a running step. `entry.check()` raises LostLease when somebody else owns it by now."""
    won = ask(
        "update job_steps set status = %s, worker_id = null, lease_until = null, finished_at = clock_timestamp(), "
        "output = %s, reason = %s, detail = %s, progress = null where id = %s and fence = %s and status = 'running'",
        status.value,
        Jsonb(chain.redact(dict(output))),
        reason,
        chain.redact(detail),
        step["id"],
        step["fence"],
    )
    entry.demand(won, f"{key_of(step)} is no longer ours")
    entry.event(
        f"step.{status.value}",
        actor="system:worker",
        step=key_of(step),
        fence=step["fence"],
        **({"reason": reason, "detail": detail[:500]} if reason else {}),
    )


def go_on(entry: Entry) -> None:
    """The job's clock goes on: what it waited for the forge or for space does not count against its time limit."""
    since, deadline = entry["forge_wait_since"], entry["deadline_at"]
    if since is not None:
        entry.set(forge_wait_since=None, deadline_at=deadline and deadline + (entry.now - since))


def hand_back(entry: Entry, step: Mapping[str, Any], reason: str, detail: str, retry_after: float) -> None:
    """Running → pending, to be tried again after `retry_after` seconds: the outside world was at fault."""
    won = execute(
        "update job_steps set status = 'pending', worker_id = null, lease_until = null, ready_at = null, "
        "rung_at = null, faults = faults + 1, run_after = clock_timestamp() + %s * interval '1 second', "
        "reason = %s, detail = %s where id = %s and fence = %s and status = 'running'",
        retry_after,
        reason,
        chain.redact(detail),
        step["id"],
        step["fence"],
    )
    if won != 1:
        raise LostLease(f"{key_of(step)} is no longer ours")
    if reason in CLOCK_STOPS and entry["forge_wait_since"] is None:
        entry.set(forge_wait_since=entry.now)  # the job's clock stands still from here on
    entry.event(
        "step.progress",
        actor="system:worker",
        step=key_of(step),
        fence=step["fence"],
        waiting=reason,
        detail=detail[:500],
        retry_in=round(retry_after, 1),
    )


def reclaim(entry: Entry, step: Mapping[str, Any]) -> bool:
    """Take a step from a worker that is gone; True when it may run again, False when it was given up."""
    fence = entry.next_fence()
    poison = step["crashes"] + 1 >= MAX_CRASHES
    execute(
        "update job_steps set status = %s, worker_id = null, lease_until = null, ready_at = null, rung_at = null, "
        "fence = %s, crashes = crashes + 1, reason = %s, finished_at = %s where id = %s and status = 'running'",
        "failed" if poison else "pending",
        fence,
        "crashed" if poison else "",
        entry.now if poison else None,
        step["id"],
    )
    entry.event("worker.lost", step=key_of(step), worker=step["worker_id"], crashes=step["crashes"] + 1, fence=fence)
    if poison:
        entry.event("step.failed", step=key_of(step), reason="crashed", fence=fence)
    return not poison


def wait_again(entry: Entry) -> list[str]:
    """Take back that it is the turn of the job's file steps; the names of those whose turn it was."""
    rows = fetch(
        "update job_steps set ready_at = null, rung_at = null, host = '' where job_id = %s and status = 'pending' "
        "and ready_at is not null and name <> all(%s) returning name",
        entry.id,
        list(ANYWHERE),
    )
    return [row["name"] for row in rows]


def skip(entry: Entry, steps: Iterable[Mapping[str, Any]], why: str, status: StepStatus = StepStatus.SKIPPED) -> None:
    """Close pending steps that will not run."""
    for step in steps:
        if execute(
            "update job_steps set status = %s, reason = %s, finished_at = clock_timestamp() "
            "where id = %s and status = 'pending'",
            status.value,
            why,
            step["id"],
        ):
            entry.event("step.skipped", step=key_of(step), why=why)


def event(step: Mapping[str, Any], kind: str, **data: Any) -> None:
    """Record something that happened inside a running step; LostLease when it is not ours any more."""
    with entry(step["job_id"]) as job:
        if not owned(step["id"], step["fence"]):
            raise LostLease(f"{key_of(step)} is no longer ours")
        job.event(kind, actor="system:worker", step=key_of(step), **data)


def progress(step: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """The newest progress of a running step, on its row and as an event."""
    with entry(step["job_id"]) as job:
        if not execute(
            "update job_steps set progress = %s where id = %s and fence = %s and status = 'running'",
            Jsonb(chain.redact(dict(data))),
            step["id"],
            step["fence"],
        ):
            raise LostLease(f"{key_of(step)} is no longer ours")
        job.event("step.progress", actor="system:worker", step=key_of(step), **data)


def tokens(step: Mapping[str, Any], usage: Usage, before: Usage) -> None:
    """Record token use of a running step: `usage` is the run's total so far, `before` what was already counted."""
    with entry(step["job_id"]) as job:
        if not owned(step["id"], step["fence"]):
            raise LostLease(f"{key_of(step)} is no longer ours")
        had = job["tokens"], job["cost_usd"]
        job.set(
            tokens=job["tokens"] + max(0, usage.total - before.total),
            cost_usd=job["cost_usd"] + max(0.0, usage.cost_usd - before.cost_usd),
        )
        job.event("ai.tokens_used", actor="system:worker", step=key_of(step), **asdict(usage))
        budgets.crossed(job, *had)


def log(step_id: int, text: str) -> None:
    """Append output of a step. Redacted and batched by the caller."""
    db.execute_sql("insert into step_logs (step_id, text) values (%s, %s)", (step_id, chain.redact(text)))


def gate_result(entry: Entry, step: Mapping[str, Any], result: GateResult) -> None:
    """Store a gate's receipt, once per step, in the transaction that closes the step."""
    send(
        "insert into gate_results (job_id, step_id, round, name, type, command, required, passed, exit_code, seconds, "
        "why, output, counts, coverage, tree_sha, timed_out) values (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) "
        "on conflict (step_id) do nothing",
        entry.id,
        step["id"],
        step["round"],
        result.name,
        result.type,
        result.command,
        result.required,
        result.passed,
        result.exit_code,
        result.seconds,
        chain.redact(result.why),
        chain.redact(result.output),
        Jsonb(dict(result.counts)),
        result.coverage,
        result.tree_sha,
        result.timed_out,
    )
    entry.event(
        "gate.passed" if result.passed else "gate.failed",
        actor="system:worker",
        step=key_of(step),
        exit_code=result.exit_code,
        seconds=round(result.seconds, 3),
        why=result.why,
        tree_sha=result.tree_sha,
        **dict(result.counts),
    )
