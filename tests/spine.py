"""Helpers to drive the spine without consumers: make a job, hear its bells, do its steps as a test says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

from app import queries, stitcher
from app.gitea_events import text_hash
from app.ledger import steps, workers
from app.ledger.chain import link, transaction
from app.models import execute, fetch
from app.types import Done, Pool, Result, Trigger

_numbers = itertools.count(1)
RULES = {"limits": {"rounds": 2, "attempts": 2, "minutes": 60, "concurrent": 1}}
GATE = {"name": "test", "type": "test", "command": "true", "order": 10}


def trigger(**more: Any) -> Trigger:
    number = next(_numbers)
    text = f"@mosaic fix this {number}"
    base: dict[str, Any] = {
        "kind": "comment",
        "repository_id": 1,
        "repository": "acme/calc",
        "number": number,
        "is_pull": False,
        "object_id": 1000 + number,
        "actor_id": 7,
        "actor": "alice",
        "text": text,
        "text_sha256": text_hash(text),
        "permission": "write",
        "at": "2026-11-22T10:00:00Z",
    }
    return Trigger(**{**base, **more})


def submit(**more: Any) -> int:
    """A new pending job, as the receiver makes it."""
    given = trigger(**{key: value for key, value in more.items() if key != "priority"})
    with transaction():
        job = stitcher.submit(
            given, trigger_key=f"test:{given.object_id}", instructions="fix", priority=more.get("priority", 0)
        )
    assert job is not None
    return job


def worker(pool: str = "control", slots: int = 8) -> int:
    number = next(_numbers)
    return workers.register(f"boot-{number}", "here", number, pool, slots, "test")


def bells(pool: Pool | None = None) -> list[tuple[str, str, int]]:
    """(queue, task, id) of every bell that hangs in Huey's table, oldest first."""
    rows = fetch("select queue, data from huey_task order by id")
    heard = [(row["queue"], json.loads(bytes(row["data"]))) for row in rows]
    return [(name, bell["task"], bell["id"]) for name, bell in heard if pool is None or name == f"mosaic-{pool.value}"]


def silence() -> None:
    """Lose all bells."""
    fetch("delete from huey_task returning id")


def admitted(job_id: int, **facts: Any) -> Done:
    """What runner.admit answers for a job that is allowed."""
    return Done(
        facts={
            "branch": f"mosaic/issue-{job_id}",
            "base_sha": "0" * 40,
            "default_branch": "main",
            "rules": facts.pop("rules", RULES),
            "gates": facts.pop("gates", [GATE]),
            **facts,
        }
    )


Script = Mapping[str, Callable[[dict[str, Any]], Result]]


def outcome(row: dict[str, Any], script: Script) -> Result:
    """What a step answers: by the script, else the plain success of that step."""
    name = row["name"]
    chosen = script.get(steps.key_of(row)) or script.get(name)
    if chosen:
        return chosen(row)
    if name == "runner.admit":
        return admitted(row["job_id"])
    if name == "herald.publish":
        return Done(facts={"pull_request": 5}, conclude="done")
    return Done(output={"step": name})


def ready_steps(job_id: int | None = None) -> list[int]:
    """Whose turn it is. The pause before another attempt at what failed has passed; what was handed back waits."""
    execute(
        "update job_steps set run_after = null where status = 'pending' and faults = 0 and attempt - excused > 1 "
        "and (%s::bigint is null or job_id = %s)",
        job_id,
        job_id,
    )
    rows = fetch(
        "select id from job_steps where status = 'pending' and ready_at is not null and (%s::bigint is null "
        "or job_id = %s) and (run_after is null or run_after <= clock_timestamp()) order by id",
        job_id,
        job_id,
    )
    return [row["id"] for row in rows]


def work(job_id: int, worker_id: int, script: Script | None = None, limit: int = 200) -> str:
    """Do the ready steps of a job until it ends or rests; its status."""
    for _ in range(limit):
        found = ready_steps(job_id)
        if not found:
            break
        row = steps.claim(found[0], worker_id, "here")
        assert row is not None
        assert stitcher.record(row, outcome(row, script or {}))
    job = queries.job(job_id)
    assert job is not None
    return job.status.value


def broken_links(job_id: int) -> list[int]:
    """Positions at which the event chain of a job does not verify; the head on the job included."""
    prev, seq, wrong = "", 0, []
    for row in queries.event_rows(job_id):
        seq += 1
        expected = link(prev, job_id, seq, row["kind"], row["at"], row["actor"], row["step"], row["data"])
        if (row["seq"], row["prev"], row["hash"]) != (seq, prev, expected):
            wrong.append(row["seq"])
        prev = row["hash"]
    [head] = fetch("select event_seq, event_hash from runner_jobs where id = %s", job_id)
    return wrong + ([-1] if (head["event_seq"], head["event_hash"]) != (seq, prev) else [])
