"""What is stored of a job, and what its events say of a step: the two sides that the fold compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.quality_rails import gates_hash
from app.queries import of_audit
from app.queries.of_audit import Connection
from app.rules import Rules
from app.types import GateSpec


@dataclass(slots=True)
class StoredStep:
    """A row of job_steps, as far as the events speak of it."""

    id: int
    name: str
    round: int
    attempt: int
    status: str
    cleanup: bool
    order: int
    fence: int
    crashes: int
    faults: int
    reason: str
    worker_id: int | None
    commit: str | None
    tree: str | None


@dataclass(slots=True)
class StoredJob:
    """A row of runner_jobs and what belongs to it, as far as the events speak of it."""

    id: int
    status: str
    reason: str | None
    requester: str
    number: int | None
    text_sha256: str
    fence: int
    event_seq: int
    event_hash: str
    base_sha: str | None
    gates: list[dict[str, Any]]
    gates_sha256: Callable[[], str]
    rules_sha256: Callable[[], str]
    admission_recorded: bool
    steps: dict[str, StoredStep] = field(default_factory=dict)
    receipts: dict[str, tuple[bool, str, int | None]] = field(default_factory=dict)  # step → passed, tree, exit code


@dataclass(slots=True)
class Seen:
    """What the events have said of one step so far."""

    status: str = "pending"
    fence: int = 0
    known: bool = True  # whether `fence` is known: its event still has its body
    crashes: int = 0
    faults: int = 0
    worker: int | None = None
    lost_at: int = 0  # the event by which its worker was lost; 0 = it is not to begin again


def stored(connection: Connection, low: int, high: int) -> dict[int, StoredJob]:
    """The jobs in [low, high) with their steps and receipts."""
    since = of_audit.applied_at(connection, "0006_audit")
    jobs = {row["id"]: _job(row, since) for row in of_audit.jobs(connection, low, high)}
    for job_id, *step in of_audit.steps(connection, low, high):
        if job_id not in jobs:
            continue  # its events say that the job is gone
        one = StoredStep(*step)
        jobs[job_id].steps[f"{one.name}@{one.round}.{one.attempt}"] = one
    for job_id, key, passed, tree, code in of_audit.receipts(connection, low, high):
        if job_id not in jobs:
            continue
        jobs[job_id].receipts[key] = (passed, tree, code)
    return jobs


def _job(row: dict[str, Any], since: Any) -> StoredJob:
    gates, rules = row["gates"], row["rules"]
    return StoredJob(
        id=row["id"],
        status=row["status"],
        reason=row["reason"],
        requester=row["requester"],
        number=row["number"],
        text_sha256=row["text_sha256"],
        fence=row["fence"],
        event_seq=row["event_seq"],
        event_hash=row["event_hash"],
        base_sha=row["base_sha"],
        gates=gates,
        gates_sha256=lambda: _gates(json.dumps(gates)),
        rules_sha256=lambda: _rules(rules or "{}"),
        admission_recorded=since is not None and row["created_at"] > since,
    )


@lru_cache(maxsize=1000)
def _gates(text: str) -> str:
    """The hash of the gates, or why there is none: what stands in the row may be anything by now."""
    try:
        return gates_hash(tuple(GateSpec(**gate) for gate in json.loads(text)))
    except (TypeError, ValueError) as error:
        return f"unreadable ({type(error).__name__})"


@lru_cache(maxsize=1000)
def _rules(text: str) -> str:
    try:
        return Rules.from_json(text).sha256
    except (TypeError, ValueError) as error:
        return f"unreadable ({type(error).__name__})"
