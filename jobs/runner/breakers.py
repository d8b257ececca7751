"""Breakers: what stops a runaway night. How many jobs a person, an issue and a repository may have, and how many of an
issue may fail in a row before a person has to say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from app import queries
from app.rules_schema import Limits
from app.types import Job


def tripped(job: Job, limits: Limits, base: str) -> tuple[str, str] | None:
    """(reason, detail) of the first breaker that turns this job away; None when none does. `base` = today's base."""
    for name, most, hours, what, scope in _counted(job, limits):
        free = queries.free_again(job, most, hours, **scope)
        if free is not None:
            said = f"More than {most} requests {what} within {_window(hours)} (`limits.{name}`)."
            return "rate_limited", f"{said} It is possible again at {_clock(free)}."
    return _failing(job, limits, base)


def _counted(job: Job, limits: Limits) -> Iterator[tuple[str, int, float, str, dict[str, Any]]]:
    here = {"repository_id": job.repository_id}
    yield "per_user_hour", limits.per_user_hour, 1, "of one person", {"requester_id": job.requester_id}
    if job.number is not None:
        yield "per_issue_day", limits.per_issue_day, 24, "on one issue", {**here, "number": job.number}
    yield "per_repository_hour", limits.per_repository_hour, 1, "in one repository", here
    yield "per_repository_day", limits.per_repository_day, 24, "in one repository", here


def _failing(job: Job, limits: Limits, base: str) -> tuple[str, str] | None:
    """Who says `retry` or `continue` has looked; and after a change of the default branch it may be another story."""
    if job.retry_of is not None or job.number is None:
        return None
    failed = queries.failed_in_a_row(job.repository_id, job.number, limits.failures_in_a_row)
    if len(failed) < limits.failures_in_a_row or failed[0].base_sha != base:
        return None
    numbers = ", ".join(str(one.id) for one in failed[:5])
    return "failing_repeatedly", (
        f"{len(failed)} jobs in a row failed here within a day: {numbers} (`limits.failures_in_a_row`)."
    )


def _window(hours: float) -> str:
    return "an hour" if hours == 1 else "a day"


def _clock(moment: datetime) -> str:
    at = moment.astimezone(UTC)
    return f"{at:%H:%M} UTC" if at.date() == datetime.now(UTC).date() else f"{at:%Y-%m-%d %H:%M} UTC"
