"""The ledger of a job, read."""

from __future__ import annotations

from typing import Any

from app.models import fetch, fetch_one
from app.queries.rows import as_event
from app.types import Event


def events(job_id: int, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
    rows = fetch("select * from job_events where job_id = %s and seq > %s order by seq limit %s", job_id, after, limit)
    return tuple(map(as_event, rows))


def event_rows(job_id: int) -> list[dict[str, Any]]:
    return fetch("select * from job_events where job_id = %s order by seq", job_id)


def chain_head(job_id: int) -> tuple[int, str]:
    """(seq, hash) of a job's newest event; (0, "") when there is none."""
    row = fetch_one("select event_seq, event_hash from runner_jobs where id = %s", job_id)
    return (int(row["event_seq"]), str(row["event_hash"])) if row else (0, "")
