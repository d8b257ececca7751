"""What the limits over time look at: requests counted by person, issue and repository, failures in a row, dollars."""

from __future__ import annotations

from datetime import datetime

from app.models import fetch, fetch_one
from app.queries.rows import as_job
from app.types import Job

# What was turned away does not count: else asking too soon would put the time off. Of what is still being judged count
# the requests of the person who asks now, and those of people who were found to be allowed: a stranger uses up nothing.
_COUNTS = (
    "id < %s and (base_sha is not null or (finished_at is null and (requester_id = %s or exists (select 1 from "
    "job_events v where v.job_id = runner_jobs.id and v.kind = 'authz.checked' "
    "and v.data::jsonb ->> 'allowed' = 'true'))))"
)


def free_again(
    job: Job,
    most: int,
    hours: float,
    *,
    repository_id: int | None = None,
    number: int | None = None,
    requester_id: int | None = None,
) -> datetime | None:
    """When a request like this one of `job` is within `most` in `hours` again; None when it is now.

    Counted are the jobs before it, of the repository, issue or person that is named.
    """
    row = fetch_one(
        "select created_at + %s * interval '1 hour' as free from runner_jobs where "
        f"{_COUNTS} and created_at > clock_timestamp() - %s * interval '1 hour' "
        "and (%s::bigint is null or repository_id = %s::bigint) and (%s::int is null or number = %s::int) "
        "and (%s::bigint is null or requester_id = %s::bigint) order by created_at desc, id desc offset %s limit 1",
        hours,
        job.id,
        job.requester_id,
        hours,
        repository_id,
        repository_id,
        number,
        number,
        requester_id,
        requester_id,
        most - 1,
    )
    return row["free"] if row else None


def failed_in_a_row(repository_id: int, number: int, limit: int) -> tuple[Job, ...]:
    """The newest jobs of an issue that were admitted within a day, up to the first that did not fail; newest first."""
    rows = fetch(
        "select * from runner_jobs where repository_id = %s and number = %s and base_sha is not null "
        "and finished_at is not null and created_at > clock_timestamp() - interval '24 hours' "
        "order by id desc limit %s",
        repository_id,
        number,
        limit,
    )
    ended = list(map(as_job, rows))
    failed = next((at for at, job in enumerate(ended) if job.status != "failed"), len(ended))
    return tuple(ended[:failed])


def told_lately(job: Job) -> bool:
    """Whether this person, or this issue, was told the same refusal in a comment within the last hour."""
    return (
        fetch_one(
            "select 1 as yes from runner_jobs j join effects e on e.key = 'job:' || j.id || ':closing' "
            "where j.repository_id = %s and j.id < %s and j.reason = %s and j.base_sha is null "
            "and (j.number = %s or j.requester_id = %s) and j.created_at > clock_timestamp() - interval '1 hour' "
            "limit 1",
            job.repository_id,
            job.id,
            job.reason,
            job.number,
            job.requester_id,
        )
        is not None
    )
