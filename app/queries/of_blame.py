"""From a commit back to the job that made it."""

from __future__ import annotations

from typing import Any

from app.models import fetch, fetch_one


def commits(prefix: str, limit: int = 20) -> list[dict[str, Any]]:
    """The commits that begin with these digits and that Mosaic made or pushed: sha, job_id, pushed."""
    return fetch(
        "select sha, job_id, bool_or(pushed) as pushed from ("
        "select result ->> 'sha' as sha, job_id, true as pushed from effects "
        "where kind = 'push' and result ->> 'sha' like %s "
        "union all select output ->> 'commit', job_id, false from job_steps "
        "where name = 'runner.commit' and output ->> 'commit' like %s) found where job_id is not null "
        "group by sha, job_id order by pushed desc, job_id limit %s",
        prefix + "%",
        prefix + "%",
        limit,
    )


def repositories() -> list[dict[str, Any]]:
    """id and name of every repository that is known."""
    return fetch("select id, full_name from repositories order by id")


def anchor_of(job_id: int, seq: int) -> dict[str, Any] | None:
    """seq, at, hash of the first anchor that covers this event of a job."""
    return fetch_one(
        "select a.seq, a.at, a.hash from audit_anchors a, jsonb_array_elements(a.body::jsonb -> 'heads') head "
        "where (head ->> 0)::bigint = %s and (head ->> 1)::integer >= %s order by a.seq limit 1",
        job_id,
        seq,
    )
